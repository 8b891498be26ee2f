from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_distilbert.deploy import sensitivity
from lightning_distilbert.deploy.sensitivity import mixtures, quantize, rank

HARM = {"embeddings": 0.1, "layer 0": 0.4, "layer 1": 0.2, "head": 0.3}


class Quantizer:
    """Writes down what it leaves in float."""

    def __init__(self) -> None:
        self.blocks, self.written = list(HARM), list[list[str]]()

    def write(self, folder: Path, left_in_float: Any = ()) -> str:
        self.written.append(sorted(left_in_float))
        (folder / "model").write_text(",".join(block for block in self.blocks if block not in left_in_float))
        return "model"


class Verifier:
    """The score falls by the harm of each block in 8 bits."""

    def __init__(self, needed: float) -> None:
        self.needed = needed

    def harm(self, folder: Path) -> float:
        return sum(HARM[block] for block in (folder / "model").read_text().split(",") if block)

    def check(self, folder: Path, facts: Any) -> Any:
        kept = 1 - self.harm(folder)
        return SimpleNamespace(retention=kept, passed=kept >= self.needed)

    def outputs(self, harm: float) -> float:
        return harm

    def distance(self, harm: float) -> tuple[float, float]:
        return 9.0, harm


@pytest.fixture(autouse=True)
def _engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "open_engine", lambda folder, facts: Verifier(0).harm(folder))


def run(tmp_path: Path, needed: float) -> tuple[Any, ...]:
    quantizer: Any = Quantizer()
    verifier: Any = Verifier(needed)
    return *quantize(quantizer, verifier, {"format": "x"}, tmp_path, tmp_path / "scratch"), quantizer


def test_the_most_harmful_blocks_come_first(tmp_path: Path):
    quantizer: Any = Quantizer()
    verifier: Any = Verifier(0)
    assert rank(quantizer, verifier, {}, tmp_path / "scratch") == ["layer 0", "head", "layer 1", "embeddings"]
    assert not (tmp_path / "scratch").exists()


def test_all_is_quantised_where_that_is_enough(tmp_path: Path):
    checked, left, tried, quantizer = run(tmp_path, 0.0)
    assert checked.passed
    assert left == []
    assert len(tried) == len(quantizer.written) == 1


@pytest.mark.parametrize(("needed", "expected"), [(0.3, ["layer 0"]), (0.5, ["layer 0", "head"])])
def test_as_little_as_the_gate_needs_stays_in_float(tmp_path: Path, needed: float, expected: list[str]):
    checked, left, tried, quantizer = run(tmp_path, needed)
    assert checked.passed
    assert left == expected
    assert quantizer.written[-1] == sorted(expected)
    assert tried[-1] == {"left_in_float": expected, "retention": checked.retention}


def test_a_gate_out_of_reach_fails_with_the_last_attempt(tmp_path: Path):
    checked, left, tried, _ = run(tmp_path, 0.99)
    assert not checked.passed
    assert left == ["layer 0", "head"]
    assert [len(attempt["left_in_float"]) for attempt in tried] == [0, 1, 2]


def test_never_all_stay_in_float():
    assert mixtures(["a"]) == []
    assert [len(left) for left in mixtures(list("abcdefgh"))] == [1, 2, 4]
