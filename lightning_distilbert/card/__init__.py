"""Model cards: the README.md of a saved student, for people and for the hub."""

from __future__ import annotations

from lightning_distilbert.card.writing import try_card, write_card

__all__ = ["try_card", "write_card"]
