"""Saved students and artefacts behind HTTP, by LitServe."""

from lightning_distilbert.serving.api import StudentAPI
from lightning_distilbert.serving.server import make_server, serve

__all__ = ["StudentAPI", "make_server", "serve"]
