from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.placing import check_writable, is_disk_error, placed


def artefact(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("old")
    return folder


def test_new_folder_appears_with_its_parents(tmp_path: Path):
    target = tmp_path / "a" / "b"
    with placed(target, "artefact") as work:
        (work / "model.onnx").write_text("new")
        assert not target.exists()
    assert (target / "model.onnx").read_text() == "new"
    assert [item.name for item in target.parent.iterdir()] == ["b"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_old_artefact_is_replaced_as_a_whole(tmp_path: Path):
    target = artefact(tmp_path / "a")
    (target / "model_int8.onnx").write_text("old")
    with placed(target, "artefact") as work:
        (work / "manifest.json").write_text("new")
    assert [item.name for item in target.iterdir()] == ["manifest.json"]
    assert (target / "manifest.json").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException):
    target = tmp_path / "a" / "b"
    wanted = DistillationError if isinstance(error, OSError) else KeyboardInterrupt

    def fail() -> None:
        with placed(target, "artefact") as work:
            (work / "model.onnx").write_text("half")
            raise error

    with pytest.raises(wanted):
        fail()
    assert not any(tmp_path.iterdir())


def test_old_artefact_stays_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = artefact(tmp_path / "a")
    replace = os.replace

    def full(source: Path, place: Path) -> None:
        if Path(place) == target and Path(source).suffix == ".tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, place)

    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(DistillationError, match=r"artefact .* could not be written \(.*No space left"),
        placed(target, "artefact") as work,
    ):
        (work / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_what_is_carried_over_is_copied_into_the_new_folder(tmp_path: Path):
    target = artefact(tmp_path / "a")
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("mine")
    (target / "link").symlink_to("nowhere")
    with placed(target, "model", carried=lambda name: name != "manifest.json") as work:
        (work / "config.json").write_text("new")
    assert sorted(item.name for item in target.iterdir()) == ["config.json", "link", "notes"]
    assert (target / "notes" / "mine.txt").read_text() == "mine"
    assert (target / "link").is_symlink()


@pytest.mark.parametrize(
    ("error", "disk"),
    [
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/1"), True),
        (RuntimeError("write: No space left on device"), True),
        (SafetensorError("I/O error"), True),
        (RuntimeError("bad shape"), False),
        (DistillationError("No space left in this sentence"), False),
    ],
)
def test_errors_of_the_disk_are_known_whatever_library_raises_them(error: Exception, disk: bool):
    assert is_disk_error(error) is disk


def test_an_error_without_words_is_named(tmp_path: Path):
    with pytest.raises(DistillationError, match=r"could not be written \(OSError\)"), placed(tmp_path / "a", "model"):
        raise OSError


def test_place_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_writable(tmp_path / "new" / "a", "It", "--output")
    (tmp_path / "file").touch()
    with pytest.raises(DistillationError, match=r"It cannot be saved in .*file' is no folder.*Choose another --output"):
        check_writable(tmp_path / "file" / "a", "It", "--output")
    # the super-user of a container may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DistillationError, match="no folder that you may write to"):
        check_writable(tmp_path / "new" / "a", "It", "--output")
