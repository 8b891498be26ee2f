"""Pushing to the hub: what arrives at a server on this machine, and what is refused before anything is sent."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from lightning_distilbert import DistillationError, hub, load
from lightning_distilbert.card import write_card
from lightning_distilbert.deploy.manifest import write_manifest
from lightning_distilbert.hub import check_whole, push_to_hub
from tests.hub import READER, TOKEN, Hub, running
from tests.students import FILMS, save_classifier

# huggingface_hub 2.4 uploads large files by a name of httpx2 that is going out of use
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("push"))


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the way of git-lfs, which a small server can go
    monkeypatch.setattr(hub, "get_token", lambda: None)  # whoever runs the tests may be logged in
    with running() as found:
        yield found


def test_what_arrives_is_the_folder(student: Path, server: Hub, tmp_path: Path):
    (student / "last.ckpt").write_bytes(b"a checkpoint")
    url = push_to_hub(student, "jane/films", private=True, token=TOKEN, endpoint=server.address)
    files = server.files("jane/films")
    sent = {str(path.relative_to(student)): path for path in student.rglob("*") if path.is_file()}
    assert files.keys() == sent.keys() - {"last.ckpt"}
    assert all(files[name] == sent[name].read_bytes() for name in files)
    assert server.private == {"jane/films": "private"}
    assert url == f"{server.address}/jane/films/commit/{server.commits[0]['oid']}"
    assert server.commits[0]["message"] == "Student of lightning_distilbert"
    for name, content in files.items():  # and it is a student again
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    assert load(tmp_path / "there").predict(FILMS) == load(student).predict(FILMS)


def test_card_names_the_repository(student: Path, server: Hub):
    write_card(student, licence="mit")
    assert 'load("student")' in (student / "README.md").read_text()
    push_to_hub(student, "films", token=TOKEN, endpoint=server.address)
    card = server.files("jane/films")["README.md"].decode()
    assert 'load(snapshot_download("jane/films"))' in card
    assert 'model="jane/films"' in card
    assert "# films\n" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"


def test_own_card_is_sent_as_it_is(student: Path, server: Hub):
    (student / "README.md").write_text("# Mine\n")
    push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address)
    assert server.files("jane/films")["README.md"] == b"# Mine\n"


def test_pushing_again_adds_a_commit_to_a_branch(student: Path, server: Hub):
    push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address)
    (student / "notes.txt").write_text("new")
    for message in ("first", "second"):  # the branch is there by then
        options = {"revision": "try", "message": message}
        push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address, **options)
    assert "notes.txt" in server.files("jane/films", "try")
    assert "notes.txt" not in server.files("jane/films")
    assert [(one["revision"], one["message"]) for one in server.commits[1:]] == [("try", "first"), ("try", "second")]


def test_artefact_is_sent_with_its_manifest(student: Path, server: Hub, tmp_path: Path):
    artefact = tmp_path / "artefact"
    artefact.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(student / name, artefact)
    (artefact / "model.onnx").write_bytes(b"graph")
    write_manifest(artefact, {"format": "onnx", "task": "", "model": "model.onnx", "inputs": [], "outputs": []})
    push_to_hub(artefact, "jane/films-onnx", token=TOKEN, endpoint=server.address)
    files = server.files("jane/films-onnx")
    assert files.keys() == {path.name for path in artefact.iterdir()}
    assert 'load(snapshot_download("jane/films-onnx"))' in files["README.md"].decode()
    assert server.commits[0]["message"] == "Artefact of lightning_distilbert"
    (artefact / "model.onnx").write_bytes(b"other")
    with pytest.raises(DistillationError, match="is not the file that was exported"):
        push_to_hub(artefact, "jane/other", token=TOKEN, endpoint=server.address)
    assert "jane/other" not in server.repos


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "There is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 100), "cannot be read"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-100]
            ),
            "cannot be read",
        ),
        (
            lambda folder: [
                (folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
            ],
            "holds no tokenizer",
        ),
    ],
)
def test_broken_folder_is_refused_before_anything_is_sent(student: Path, server: Hub, spoil, message: str):
    spoil(student)
    with pytest.raises(DistillationError, match=message):
        push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address)
    assert not server.repos


@pytest.mark.parametrize("name", ["a/b/c", "jane/with space", "-films", "", "jane/films.git"])
def test_bad_name_is_refused(student: Path, server: Hub, name: str):
    with pytest.raises(DistillationError, match="is no name on the hub"):
        push_to_hub(student, name, token=TOKEN, endpoint=server.address)


def test_missing_token_is_refused(student: Path, server: Hub):
    with pytest.raises(DistillationError, match="hf auth login"):
        push_to_hub(student, "jane/films", endpoint=server.address)
    assert not server.repos


@pytest.mark.parametrize(("token", "message"), [("hf_unknown", "does not know this token"), (READER, "may not write")])
def test_token_that_may_not_write(student: Path, server: Hub, token: str, message: str):
    with pytest.raises(DistillationError, match=message):
        push_to_hub(student, "jane/films", token=token, endpoint=server.address)


def test_card_that_the_hub_refuses(student: Path, server: Hub):
    (student / "README.md").write_text("---\nlicense: other\n---\n# Mine\n")
    with pytest.raises(DistillationError, match=r'the hub refused .*"license_name" is required'):
        push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address)
    assert not server.commits


def test_error_of_the_hub(student: Path, server: Hub):
    server.broken = True
    with pytest.raises(DistillationError, match=r"the hub refused .*Nothing was committed"):
        push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address)


def test_no_network(student: Path, server: Hub):
    with socket.socket() as closed:  # nobody listens at a port that is bound only
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DistillationError, match=r"could not be reached, .*Check the network"):
            push_to_hub(student, "jane/films", token=TOKEN, endpoint=address)


def test_offline_environment(student: Path, server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DistillationError, match="HF_HUB_OFFLINE"):
        push_to_hub(student, "jane/films", token=TOKEN, endpoint=server.address)


def test_whole_folders_are_told_apart(student: Path):
    assert check_whole(student) == "student"


def test_students_of_other_libraries_may_be_pushed(tiny_teacher_dir: Path, tmp_path: Path, server: Hub):
    folder = Path(shutil.copytree(tiny_teacher_dir, tmp_path / "bert"))
    push_to_hub(folder, "jane/bert", token=TOKEN, endpoint=server.address)
    card = server.files("jane/bert")["README.md"].decode()
    assert "It was not made with lightning_distilbert" in card
    assert json.loads(server.files("jane/bert")["config.json"])["model_type"] == "bert"
    assert huggingface_hub.ModelCard(card).data.pipeline_tag == "text-classification"
