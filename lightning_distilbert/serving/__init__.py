"""Saved students and artefacts behind HTTP, by LitServe."""

from lightning_distilbert.errors import require

require("litserve", extra="serve")  # before what is made of it

from lightning_distilbert.serving.api import StudentAPI  # noqa: E402
from lightning_distilbert.serving.server import make_server, serve  # noqa: E402

__all__ = ["StudentAPI", "make_server", "serve"]
