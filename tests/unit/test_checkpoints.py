"""Files that are no checkpoint, and weights that do not fit; `test_integration_mistakes` has them in a Trainer."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_distilbert.checkpoints import check_content, check_file, check_projections, difference, guard
from lightning_distilbert.errors import DistillationError


def test_what_torch_wrote_passes_in_either_format_and_what_nobody_can_read_is_left_to_others(tmp_path: Path):
    for new in (True, False):
        torch.save({"state_dict": {}}, tmp_path / "one.ckpt", _use_new_zipfile_serialization=new)
        check_file(tmp_path / "one.ckpt")
    (tmp_path / "pickled.ckpt").write_bytes(pickle.dumps({}, protocol=2))
    check_file(tmp_path / "pickled.ckpt")
    check_file(str(tmp_path / "nowhere.ckpt"))
    check_file("s3://bucket/one.ckpt")
    check_content({"state_dict": {}, "epoch": 1}, "one.ckpt")


def test_difference_gives_an_example_of_each_kind():
    own = {"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}
    assert difference(own, dict(own)) == ""
    found = difference(own, {"a": torch.zeros(2, 1), "c": torch.zeros(1), "d": torch.zeros(3)})
    assert found == (
        "weights of another shape: 1 ('a': (2, 1) in the checkpoint, (2,) here), missing in it: 1 ('b'), "
        "in it alone: 1 ('d')"
    )


def test_projections_matter_in_a_fit_alone():
    fit, test = (SimpleNamespace(state=SimpleNamespace(fn=stage)) for stage in ("fit", "test"))
    check_projections([], fit)
    check_projections(["objectives.0.weight"], test)
    with pytest.raises(DistillationError, match=r"holds 1 weights of projections .*'objectives\.0\.weight'"):
        check_projections(["objectives.0.weight"], fit)


def test_a_reader_is_guarded_once_and_gets_all_arguments(tmp_path: Path):
    class Reader:
        def load_checkpoint(self, path: Any, **options: Any) -> dict[str, Any]:
            return {"state_dict": {}, "path": path, **options}

    trainer = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=Reader()))
    guard(None)
    guard(trainer)
    first = trainer.strategy.checkpoint_io.load_checkpoint
    guard(trainer)
    assert trainer.strategy.checkpoint_io.load_checkpoint is first
    assert first("x.ckpt", weights_only=True) == {"state_dict": {}, "path": "x.ckpt", "weights_only": True}
    with pytest.raises(DistillationError, match="is a folder and no checkpoint"):
        first(tmp_path)
