"""The server: LitServe around the API of a folder's task, with a page to try it."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from litserve import LitServer

from lightning_distilbert.deploy.manifest import is_artefact, read_manifest, runs_alone
from lightning_distilbert.deploy.runtime.folder import describe
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.report.machine import processors
from lightning_distilbert.serving.api import APIS, StudentAPI

ACCELERATORS = ("auto", "cpu", "cuda", "mps")
HOSTS = ("127.0.0.1", "0.0.0.0", "::")  # LitServe takes no others
PAGE = Path(__file__).with_name("page.html")


def make_server(
    folder: str | Path,
    accelerator: str = "auto",
    devices: int | str = "auto",
    workers: int = 1,
    threads: int | None = None,
    batch_size: int = 32,
    join: int = 1,
    wait: float = 0.005,
    timeout: float = 30.0,
    max_bytes: int = 10_000_000,
) -> Any:
    """Make a LitServe server of a saved student or an artefact.

    It answers ``POST /predict``, and tells of itself at ``/info``, ``/health``, ``/docs`` and on a page at ``/page``.

    Args:
        folder: The folder of a saved student, or of an artefact of any format.
        accelerator: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"``. Artefacts are run on the processor.
        devices: How many of them; on the processor there is one.
        workers: Processes on each device; each holds the model.
        threads: Threads of one call; None shares the processors among the workers.
        batch_size: Texts in a batch.
        join: Requests that are answered together, at most. 1 answers each as soon as it comes; more is worth it where
            a large batch costs hardly more than a small one, as on a GPU.
        wait: How many seconds to wait for others, where `join` is above 1.
        timeout: Seconds after which a request that still waits is given up.
        max_bytes: The longest request.

    Returns:
        A ``litserve.LitServer``; its ``app`` is the FastAPI application.

    Raises:
        DistillationError: If the folder holds no whole model, or an option is out of range.
    """
    check_choice("accelerator=...", accelerator, ACCELERATORS)
    whole = {"workers": workers, "threads": threads, "batch_size": batch_size, "join": join, "max_bytes": max_bytes}
    for name, number in whole.items():
        if number is not None and number < 1:
            raise DistillationError(f"{name}={number}: it has to be 1 or more.")
    for name, seconds in {"wait": wait, "timeout": timeout}.items():
        if not seconds > 0:
            raise DistillationError(f"{name}={seconds}: it has to be above 0.")
    if join > 1 and wait >= timeout:
        raise DistillationError(f"wait={wait}: it has to be below the timeout of {timeout} seconds.")
    about = facts_of(folder)
    if about["format"] != "transformers":
        accelerator = "cpu"
    api = APIS.get(about["task"], StudentAPI)(
        folder,
        batch_size,
        threads or max(1, processors() // workers),
        max_batch_size=join,
        batch_timeout=wait if join > 1 else 0.0,
    )
    server = LitServer(
        api,
        accelerator=accelerator,
        devices=devices,
        workers_per_device=workers,
        timeout=timeout,
        max_payload_size=max_bytes,
        model_metadata=about,
    )
    if server.devices == ["cpu"] and devices not in ("auto", 1):  # LitServe would start one without a word
        raise DistillationError(
            f"devices={devices!r}: {str(folder)!r} is served on the processor, which is one device. Use "
            "workers=..., or leave devices out."
        )
    server.app.add_api_route("/page", _page, include_in_schema=False)
    return server


def serve(folder: str | Path, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """Serve a saved student or an artefact until it is stopped.

    Args:
        folder: The folder.
        host: ``"127.0.0.1"`` is this machine alone; ``"0.0.0.0"`` and ``"::"`` are all that reach it.
        port: The port, from 1024 on.
        options: As `make_server` takes them.

    Raises:
        DistillationError: If the folder holds no whole model, an option is out of range, or the port is taken.
    """
    check_choice("host=...", host, HOSTS)
    if not 1024 <= port <= 65535:
        raise DistillationError(f"port={port}: it has to be between 1024 and 65535.")
    server = make_server(folder, **options)
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DistillationError(f"{host}:{port} cannot be served ({error}). Take another --port.") from error
    # as containers are stopped; LitServe ends its processes after an interrupt, and would leave them behind
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server.run(host=host, port=port, generate_client_file=False)


def facts_of(folder: str | Path) -> dict[str, Any]:
    """Return what ``/info`` says of a model, and find out whether it is whole.

    Args:
        folder: The folder of a saved student, or of an artefact.

    Returns:
        ``name``, ``format``, ``task`` and ``labels``.

    Raises:
        DistillationError: If it holds no whole model, or one without a head for its task.
    """
    path = Path(folder).expanduser()
    name = path.absolute().name
    if is_artefact(path) and runs_alone(manifest := read_manifest(path, verify=False)):  # without torch
        told = describe(path, "all")
        return {"name": name, "format": manifest["format"], "task": told.task, "labels": _list(told.labels)}
    from lightning_distilbert.card.facts import read_facts

    facts = read_facts(path)
    if facts.headless:
        raise DistillationError(
            f"{str(folder)!r} has no head for {facts.task_name}: nothing was trained that would answer. Fine-tune it."
        )
    kind = str(facts.manifest.get("format", "transformers"))
    return {"name": name, "format": kind, "task": type(facts.task).__name__, "labels": _list(facts.labels)}


def _list(labels: Any) -> list[str] | None:
    return None if labels is None else [str(label) for label in labels]


async def _page() -> HTMLResponse:
    return HTMLResponse(PAGE.read_text(encoding="utf-8"))
