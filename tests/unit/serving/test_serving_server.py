"""The server: its options, what it says of itself, and its page."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lightning_distilbert import DistillationError, TextClassification
from lightning_distilbert.cli import main
from lightning_distilbert.serving import StudentAPI, make_server, serve
from lightning_distilbert.serving.api import QuestionAPI
from tests.artefacts import make_artefact
from tests.students import TASKS, save_classifier


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("serving"))


def test_it_says_what_it_serves_and_has_a_page(student: Path):
    client = TestClient(make_server(student, accelerator="cpu").app)
    told = client.get("/info").json()["model"]
    assert told == {
        "name": student.name, "format": "transformers", "task": "TextClassification", "labels": ["bad", "good"]
    }  # fmt: skip
    page = client.get("/page")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")  # it loads nothing from elsewhere
    schema = client.get("/openapi.json").json()
    assert "inputs" in schema["components"]["schemas"]["Texts"]["properties"]


def test_an_artefact_is_served_on_the_processor(student: Path, tmp_path: Path):
    server = make_server(make_artefact(student, tmp_path / "artefact"), accelerator="cuda")
    assert server.devices == ["cpu"]
    assert TestClient(server.app).get("/info").json()["model"]["format"] == "onnx"


@pytest.mark.parametrize("devices", [0, 2, "2"])
def test_several_devices_are_refused_on_the_processor(devices: Any, student: Path, tmp_path: Path):
    message = f"devices={devices!r}: .*is one device. Use workers="
    with pytest.raises(DistillationError, match=message):
        make_server(student, accelerator="cpu", devices=devices)
    with pytest.raises(DistillationError, match=message):  # which is run there wherever it was asked for
        make_server(make_artefact(student, tmp_path / "artefact"), accelerator="cuda", devices=devices)
    assert make_server(student, accelerator="cpu", devices=1).devices == ["cpu"]


def test_each_task_has_requests_of_its_own(tmp_path: Path):
    server = make_server(TASKS["questions"][0](tmp_path), accelerator="cpu", join=4, wait=0.01, workers=2, batch_size=8)
    assert isinstance(server.lit_api, QuestionAPI)
    assert (server.lit_api.max_batch_size, server.lit_api.batch_timeout, server.lit_api.batch_size) == (4, 0.01, 8)
    assert server.workers_per_device == 2


def test_processors_are_shared_among_the_workers(student: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lightning_distilbert.serving.server.processors", lambda: 8)
    threads = [
        make_server(student, accelerator="cpu", **options).lit_api.threads
        for options in ({}, {"workers": 3}, {"workers": 16}, {"workers": 3, "threads": 5})
    ]
    assert threads == [8, 2, 1, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "tpu"}, "accelerator"),
        ({"workers": 0}, "workers=0"),
        ({"join": 0}, "join=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"join": 2, "wait": 60.0}, "below the timeout"),
        ({"port": 80}, "port=80"),
        ({"host": "example.org"}, "host"),
    ],
)
def test_bad_options(student: Path, options: dict[str, Any], message: str):
    with pytest.raises(DistillationError, match=message):
        serve(student, **options)


def test_folders_that_cannot_be_served(tmp_path: Path, tiny_bert_dir: Path):
    with pytest.raises(DistillationError, match="There is no folder"):
        make_server(tmp_path / "nowhere")
    encoder = Path(shutil.copytree(tiny_bert_dir, tmp_path / "headless"))  # whose head was never trained
    config = json.loads((encoder / "config.json").read_text())
    details = {"task": TextClassification(num_labels=2).to_config()}
    (encoder / "config.json").write_text(json.dumps(config | {"lightning_distilbert": details}))
    with pytest.raises(DistillationError, match="has no head"):
        make_server(tmp_path / "headless")


def test_a_port_that_is_taken(student: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DistillationError, match="cannot be served"):
            serve(student, port=taken.getsockname()[1], accelerator="cpu")


def test_command_passes_its_options_on(student: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr("lightning_distilbert.serving.serve", lambda folder, **options: seen.update(options, at=folder))
    main(["serve", "--model", str(student), "--port", "9000", "--join", "8", "--wait", "0.01", "--host", "0.0.0.0"])
    assert seen == {"at": str(student), "port": 9000, "join": 8, "wait": 0.01, "host": "0.0.0.0"}


def test_the_api_is_litserves(student: Path):
    from litserve import LitServer

    server = LitServer([StudentAPI(student, api_path="/films"), StudentAPI(student, api_path="/more")])
    paths = TestClient(server.app).get("/openapi.json").json()["paths"]
    assert {"/films", "/more"} <= paths.keys()
