"""How fast models answer: latency by length and throughput, of all models in turn, so that one machine serves all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from lightning_distilbert.architectures import accepted_inputs
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.prediction import evaluating
from lightning_distilbert.report.contenders import Contender
from lightning_distilbert.report.measure import interleaved, percentile, throughput

LENGTHS = (16, 64, 128, 256)
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
# calls of one model in a row; the one before them is not timed, since it meets another model's weights in the caches,
# and threads of another runtime that have not gone to sleep yet
BLOCK = 5


def check_lengths(contenders: Sequence[Contender], lengths: Sequence[int] | None) -> tuple[list[int], list[str]]:
    """Settle which lengths are measured.

    Args:
        contenders: The models.
        lengths: Tokens of a text, special ones included; None is 16, 64, 128 and 256, as far as a model reads them.

    Returns:
        The lengths in ascending order, and a note for each model that does not read all of them.

    Raises:
        DistillationError: If a length is below 1, or no model reads it.
    """
    longest = max(one.longest for one in contenders)
    wanted = sorted(set(lengths or [length for length in LENGTHS if length <= longest] or [longest]))
    if any(type(length) is not int or length < 1 for length in wanted):
        raise DistillationError(f"lengths={list(lengths or ())}: each has to be a number of tokens, 1 or more.")
    if wanted[-1] > longest:
        raise DistillationError(
            f"No model reads {wanted[-1]} tokens: {', '.join(f'{one.name} {one.longest}' for one in contenders)}. "
            f"Leave lengths above {longest} out."
        )
    notes = [
        f"{one.name} reads {one.longest} tokens at most: it is not timed at "
        + " and ".join(str(length) for length in wanted if length > one.longest)
        for one in contenders
        if wanted[-1] > one.longest
    ]
    return wanted, notes


def main_length(contenders: Sequence[Contender], lengths: Sequence[int]) -> int:
    """Return the length that stands for all in a table: the longest up to 128 that each model reads.

    Args:
        contenders: The models.
        lengths: The lengths that are measured.
    """
    shortest = min(one.longest for one in contenders)
    return max([length for length in lengths if length <= min(128, shortest)], default=min(lengths))


def token_batch(contender: Contender, rows: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens without padding: what they are does not change how long a model takes.

    Args:
        contender: The model that is to read them.
        rows: How many rows.
        length: Tokens in each.
        seed: The seed of the draws.
    """
    config = contender.module.student.config
    size = int(getattr(getattr(config, "encoder", config), "vocab_size", 100))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(size, (rows, length), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in accepted_inputs(contender.module.student):
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch


def latencies(
    contenders: Sequence[Contender], lengths: Sequence[int], repeats: int
) -> dict[str, dict[int, dict[str, float]]]:
    """Time single texts of each length.

    Args:
        contenders: The models.
        lengths: Tokens of a text.
        repeats: How often each model reads each length.

    Returns:
        For each name and length that the model reads ``p50``, ``p95`` and ``p99``, in milliseconds.
    """
    found: dict[str, dict[int, dict[str, float]]] = {one.name: {} for one in contenders}
    blocks = [min(BLOCK, repeats - done) for done in range(0, repeats, BLOCK)]
    bar = tqdm(total=len(lengths) * len(blocks), desc="time", unit=" rounds", delay=1, leave=False)
    with answering(contenders), bar:
        for length in lengths:
            calls = {one.name: _call(one, 1, length) for one in contenders if one.longest >= length}
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for block in blocks:
                for name, call in calls.items():
                    seconds[name] += interleaved({name: call}, repeats=block, warmup=1)[name]
                bar.update()
            for name, values in seconds.items():
                found[name][length] = {key: 1e3 * percentile(values, share) for key, share in PERCENTILES.items()}
    return found


def throughputs(contenders: Sequence[Contender], rows: int, length: int, repeats: int) -> dict[str, float]:
    """Measure how many texts a second go through in batches.

    Args:
        contenders: The models; one that does not read so many tokens is left out.
        rows: Texts in a batch.
        length: Tokens of each.
        repeats: How often each model reads a batch; the median counts.

    Returns:
        Texts per second by name.
    """
    calls = {one.name: _call(one, rows, length) for one in contenders if one.longest >= length}
    bar = tqdm(total=len(calls) * (repeats + 1), desc="throughput", unit=" batches", delay=1, leave=False)

    def counted(call: Callable[[], Any]) -> Callable[[], Any]:
        def function() -> None:
            call()
            bar.update()

        return function

    with answering(contenders), bar:
        return throughput({name: counted(call) for name, call in calls.items()}, rows, repeats=repeats, warmup=1)


@contextlib.contextmanager
def answering(contenders: Sequence[Contender]) -> Iterator[None]:
    """Put all models into eval mode without gradients for the time of a ``with`` block.

    Args:
        contenders: The models.
    """
    with contextlib.ExitStack() as stack:
        for one in contenders:
            stack.enter_context(evaluating(one.module))
        yield


def _call(contender: Contender, rows: int, length: int) -> Callable[[], Any]:
    batch = token_batch(contender, rows, length)
    task, student = contender.module.task, contender.module.student
    if task.auto_class == "AutoModelForSeq2SeqLM":  # to the end of its positions would say little of real texts
        return lambda: task.generate(student, batch, most=length)
    return lambda: task.run(student, batch)
