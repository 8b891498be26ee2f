"""``lightning-distilbert serve``: a saved student or an artefact behind HTTP."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser


def main(arguments: Sequence[str]) -> None:
    """Serve a folder until it is stopped.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    folder = options.pop("model")
    from lightning_distilbert.serving import serve  # with LitServe, which is an extra

    serve(folder, **options)


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert serve",
        description="Answer requests over HTTP with a saved student or an artefact, by LitServe: POST /predict takes "
        '{"inputs": [...]} and gives {"predictions": [...]}. /page is a page to try it, /docs describes requests, '
        "/info the model, /health says whether it is ready.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a saved student, or of an artefact that export wrote")
    add("--host", help="127.0.0.1 for this machine alone, 0.0.0.0 or :: for all that reach it (default: 127.0.0.1)")
    add("--port", type=int, help="port (default: 8000)")
    add("--accelerator", help="cpu, cuda, mps, or auto (default); artefacts are run on the processor")
    add("--devices", type=int, help="how many of them (default: all)")
    add("--workers", type=int, help="processes on each device, each with the model (default: 1)")
    add("--threads", type=int, help="threads of one call (default: the processors, shared among the workers)")
    add("--batch_size", type=int, help="texts in a batch (default: 32)")
    add("--join", type=int, help="requests that are answered together, for many clients (default: 1)")
    add("--wait", type=float, help="seconds to wait for others, with --join (default: 0.005)")
    add("--timeout", type=float, help="seconds after which a request that waits is given up (default: 30)")
    add("--max_bytes", type=int, help="the longest request (default: 10000000)")
    return parser
