from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_distilbert.deploy.placing import check_target
from lightning_distilbert.errors import DistillationError


def artefact(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("old")
    return folder


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
