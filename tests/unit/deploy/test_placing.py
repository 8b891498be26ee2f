from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_distilbert.deploy.placing import check_target, is_disk_error, placed
from lightning_distilbert.errors import DistillationError


def artefact(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("old")
    return folder


def test_new_folder_appears_with_its_parents(tmp_path: Path):
    target = check_target(tmp_path / "a" / "b")
    with placed(target) as work:
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
    with placed(check_target(target, overwrite=True)) as work:
        (work / "manifest.json").write_text("new")
    assert [item.name for item in target.iterdir()] == ["manifest.json"]
    assert (target / "manifest.json").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException):
    target = tmp_path / "a" / "b"
    wanted = DistillationError if isinstance(error, OSError) else KeyboardInterrupt

    def fail() -> None:
        with placed(target) as work:
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
    with pytest.raises(DistillationError, match=r"could not be written \(.*No space left"), placed(target) as work:
        (work / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_bad_targets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DistillationError, match="is a file"):
        check_target(tmp_path / "file")
    with pytest.raises(DistillationError, match="is no folder that you may write to"):
        check_target(tmp_path / "file" / "inside")
    with pytest.raises(DistillationError, match="is no folder that you may write to"):
        check_target("/proc/artefact")
    with pytest.raises(DistillationError, match="holds file and no manifest"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(DistillationError, match="--overwrite"):
        check_target(artefact(tmp_path / "old"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    assert check_target(tmp_path / "new", needed=5_000_000) == tmp_path / "new"
    with pytest.raises(DistillationError, match="has 5 MB left, and the export needs about 6 MB"):
        check_target(tmp_path / "new", needed=6_000_000)


@pytest.mark.parametrize(
    ("error", "disk"),
    [
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/1"), True),
        (RuntimeError("write: No space left on device"), True),
        (RuntimeError("bad shape"), False),
        (DistillationError("No space left in this sentence"), False),
    ],
)
def test_errors_of_the_disk_are_known_whatever_library_raises_them(error: Exception, disk: bool):
    assert is_disk_error(error) is disk
