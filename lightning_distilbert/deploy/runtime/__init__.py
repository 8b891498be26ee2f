"""Run an exported student with onnxruntime, tokenizers and numpy alone: no torch, no transformers, no Lightning."""

from lightning_distilbert.deploy.runtime.artefact import Artefact, load
from lightning_distilbert.deploy.runtime.vectors import search

__all__ = ["Artefact", "load", "search"]
