"""`lightning-distilbert serve` as a user runs it: a server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from lightning_distilbert.deploy import runtime
from tests.artefacts import make_artefact
from tests.students import save_classifier

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(number: int) -> list[int]:
    found = Path(f"/proc/{number}/task/{number}/children")
    direct = [int(child) for child in found.read_text().split()] if found.is_file() else []
    return direct + [inner for child in direct for inner in children(child)]


def alive(number: int) -> bool:
    state = Path(f"/proc/{number}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def get(address: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Serve a folder, and yield the address once the server is ready."""
    port = free_port()
    command = [sys.executable, "-m", "lightning_distilbert.cli", "serve", "--model", str(folder), "--port", str(port)]
    log = folder.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--accelerator", "cpu"], stdout=output, stderr=output, env=environment)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(400):
                try:
                    if get(f"{address}/health")[0] == 200:
                        break
                except OSError:
                    assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.3)
            else:
                pytest.fail(log.read_text()[-3000:])
            yield address
        finally:
            group = children(process.pid)
            process.send_signal(signal.SIGTERM)  # as a container is stopped
            try:
                process.wait(60)
            finally:
                process.kill()
            assert group  # and no process of it is left, once Python's tracker of resources has seen the end of them
            for _ in range(100):
                if not any(map(alive, group)):
                    break
                time.sleep(0.1)
            assert not [number for number in group if alive(number)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = save_classifier(tmp_path_factory.mktemp("served"))
    with serving(folder, os.environ | {"PYTHONPATH": str(ROOT)}) as address:
        yield address, folder


def test_requests_are_answered_as_predict_does(served: tuple[str, Path]):
    address, folder = served
    texts = ["a good film", "a dull film " * 100, "\N{GRINNING FACE} \u4e2d\u6587", ""]
    status, reply = get(f"{address}/predict", {"inputs": texts})
    assert status == 200, reply
    found = json.loads(reply)["predictions"]
    assert [one["label"] for one in found] == [one["label"] for one in load(folder).predict(texts)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["a", ["b", "c"]]}, "cannot be mixed"),
        ({"inputs": []}, "at least 1 item"),
        ({"texts": ["a"]}, "inputs"),
        (["a"], "inputs|object"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(served: tuple[str, Path], body: Any, message: str):
    status, reply = get(f"{served[0]}/predict", body)
    assert status == 422, reply
    assert any(word in reply for word in message.split("|"))
    assert get(f"{served[0]}/predict", {"inputs": ["a film"]})[0] == 200  # and the server lives on


def test_an_artefact_is_served_without_torch_and_transformers(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    folder = make_artefact(save_classifier(tmp_path / "student"), tmp_path / "artefact")
    wanted = runtime.load(folder).predict(["a good film", "a dull film"])
    # read by each process of the server as it starts
    code = 'import sys\nsys.modules["torch"] = sys.modules["transformers"] = None\n'
    (tmp_path / "sitecustomize.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for name in ("torch", "transformers"):
        found = subprocess.run([sys.executable, "-c", f"import {name}"], env=environment, capture_output=True)
        assert b"ModuleNotFoundError" in found.stderr
    with serving(folder, environment) as address:
        status, reply = get(f"{address}/predict", {"inputs": ["a good film", "a dull film"]})
    assert status == 200, reply
    found = json.loads(reply)["predictions"]
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-4)


def test_page_and_info(served: tuple[str, Path]):
    assert "<form" in get(f"{served[0]}/page")[1]
    assert json.loads(get(f"{served[0]}/info")[1])["model"]["labels"] == ["bad", "good"]
