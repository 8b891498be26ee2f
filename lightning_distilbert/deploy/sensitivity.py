"""Which parts of a model stay in float where 8 bits lose too much."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from lightning_distilbert.deploy.engines import open_engine
from lightning_distilbert.deploy.verify import Checked, Verifier


class Quantizer(Protocol):
    """What makes int8 models of a float one, as `OnnxQuantizer` does."""

    blocks: list[str]

    def write(self, folder: Path, left_in_float: Collection[str] = ()) -> str:
        """Write an int8 model and return its file's name."""
        ...


def rank(quantizer: Quantizer, verifier: Verifier, facts: Mapping[str, Any], scratch: Path) -> list[str]:
    """Order the blocks of a model by what 8 bits do to it, the most sensitive first.

    Each block is quantised alone, all others being left in float. The more the outputs then differ from the student's
    on the rows of the evaluation, in the mean, the more sensitive the block is.

    Args:
        quantizer: The quantiser.
        verifier: What holds the rows.
        facts: The manifest's ``format``, ``inputs`` and ``outputs``.
        scratch: A folder for files that are not kept.
    """
    moved = {}
    for block in tqdm(quantizer.blocks, desc="sensitivity", unit=" blocks", delay=1, leave=False):
        scratch.mkdir()
        file = quantizer.write(scratch, [other for other in quantizer.blocks if other != block])
        engine = open_engine(scratch, {**facts, "model": file})
        moved[block] = verifier.distance(verifier.outputs(engine))[1]
        del engine  # it may hold the file
        shutil.rmtree(scratch)
    return sorted(moved, key=moved.__getitem__, reverse=True)


def mixtures(ranked: Sequence[str]) -> list[list[str]]:
    """Return what to leave in float, one attempt after another: the most sensitive 1, 2, 4, ... blocks, never all.

    Example:
        >>> mixtures(["layer 3", "head", "layer 0"])
        [['layer 3'], ['layer 3', 'head']]
    """
    counts, count = [], 1
    while count < len(ranked):
        counts.append(count)
        count *= 2
    return [list(ranked[:count]) for count in counts]


def quantize(
    quantizer: Quantizer,
    verifier: Verifier,
    facts: Mapping[str, Any],
    folder: Path,
    scratch: Path,
) -> tuple[Checked, list[str], list[dict[str, Any]]]:
    """Quantise all blocks, and leave the most sensitive ones in float if the gate asks for it.

    Args:
        quantizer: The quantiser.
        verifier: What measures, and knows the gate.
        facts: The manifest's ``format``, ``model``, ``inputs`` and ``outputs``.
        folder: Where the model is written.
        scratch: A folder for files that are not kept; it is made and removed.

    Returns:
        What was found of the model in `folder`, which passes or is the last attempt; the blocks left in float; and
        what each attempt kept.
    """
    left: list[str] = []
    tried: list[dict[str, Any]] = []
    waiting: list[list[str]] | None = None
    while True:
        quantizer.write(folder, left)
        checked = verifier.check(folder, facts)
        tried.append({"left_in_float": left, "retention": checked.retention})
        if checked.passed:
            return checked, left, tried
        if waiting is None:
            waiting = mixtures(rank(quantizer, verifier, facts, scratch))
        if not waiting:
            return checked, left, tried
        left = waiting.pop(0)
