"""Batches of rows of similar length, which waste little on padding."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import Dataset, DistributedSampler

from lightning_distilbert.errors import DistillationError


class LengthGroupedSampler(DistributedSampler):
    """Yields whole batches, as lists of row numbers, of rows of similar length.

    Use it as ``DataLoader(data, sampler=LengthGroupedSampler(...), batch_size=None)``. It is a `DistributedSampler`
    because Lightning replaces every other sampler under a distributed strategy, and the batches would silently be
    random ones again.

    Shuffled, each epoch draws a permutation from ``(seed, epoch)``, cuts it into windows of `window` batches, sorts
    within each window and shuffles the resulting steps. The ranks work on neighbouring batches at the same step, so
    that none waits for longer rows than its own, and a longest batch comes first: where memory runs out, it does so at
    once. Unshuffled, rows are simply sorted, longest first.

    In either mode each row comes exactly once per epoch over all ranks, every rank has the same number of batches, and
    the sizes of batches differ by one at most. They do not exceed `batch_size`, except by what it takes to give each
    rank as many batches as the others where there are fewer rows than batches (so for `batch_size` 1 at most).

    Args:
        lengths: The length of each row, of shape ``(rows,)``.
        batch_size: Rows in a batch on one rank.
        shuffle: Whether epochs differ.
        seed: Of the permutation; the same on each rank.
        num_replicas: The number of ranks; None asks `torch.distributed`, or is 1 where it is not in use.
        rank: This process's rank; None as above.
        window: Batches that are sorted together. Larger ones pad less and shuffle less.

    Raises:
        DistillationError: If there are fewer rows than ranks, or `batch_size` or `window` is below 1.

    Example:
        >>> sampler = LengthGroupedSampler([3, 9, 4, 8], batch_size=2, shuffle=False)
        >>> list(sampler)
        [[1, 3], [2, 0]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        window: int = 50,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        if batch_size < 1 or window < 1:
            raise DistillationError(f"batch_size={batch_size} and window={window} have to be 1 or more.")
        if len(lengths) < num_replicas:
            raise DistillationError(
                f"{len(lengths)} rows cannot be spread over {num_replicas} processes. Use fewer devices or more rows."
            )
        super().__init__(_SizedOnly(lengths), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.window = window
        self.skip = 0  # batches to pass over when it is iterated next, once
        rows = len(self.lengths)
        steps = -(-rows // (batch_size * num_replicas))
        # fewer rows than batches can only be where batch_size is 1; an empty batch on one rank would stall the others
        self._num_steps = min(steps, rows // num_replicas)

    def __len__(self) -> int:
        """Return the number of batches on this rank."""
        return self._num_steps

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's batches of the current epoch, less the first `skip` of them."""
        first, self.skip = self.skip, 0
        for step in self._steps()[first:]:
            yield step[self.rank].tolist()

    def signature(self) -> dict[str, int]:
        """Return what the batches of an epoch depend on, as plain numbers, to compare with those of a checkpoint."""
        return {
            "rows": len(self.lengths),
            "checksum of lengths": zlib.crc32(np.ascontiguousarray(self.lengths, dtype=np.int64).tobytes()),
            "batch_size": self.batch_size,
            "window": self.window,
            "seed": self.seed,
            "shuffle": int(self.shuffle),
            "processes": self.num_replicas,
        }

    def _steps(self) -> list[list[np.ndarray]]:
        """Return all steps of the epoch, each with one batch per rank; the same on each rank."""
        rows = len(self.lengths)
        num_batches = self._num_steps * self.num_replicas
        small, larger = divmod(rows, num_batches)
        bounds = np.concatenate([[0], np.cumsum([small + 1] * larger + [small] * (num_batches - larger))])
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            batches = np.split(order, bounds[1:-1])
            return _group(batches, self.num_replicas)

        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(rows)
        steps: list[list[np.ndarray]] = []
        per_window = self.window * self.num_replicas
        for first in range(0, num_batches, per_window):
            last = min(first + per_window, num_batches)
            chosen = order[bounds[first] : bounds[last]]
            chosen = chosen[np.argsort(-self.lengths[chosen], kind="stable")]
            inner = bounds[first + 1 : last] - bounds[first]
            steps.extend(_group(np.split(chosen, inner), self.num_replicas))
        generator.shuffle(steps)
        tokens = [max(len(batch) * int(self.lengths[batch].max()) for batch in step) for step in steps]
        longest = int(np.argmax(tokens))
        steps[0], steps[longest] = steps[longest], steps[0]
        return steps


class EpochSampler(LengthGroupedSampler):
    """Yields the epoch with each list of row numbers, for a data set that draws anew in each.

    Workers live longer than an epoch and would not know it.

    Example:
        >>> sampler = EpochSampler([3, 9], batch_size=2, shuffle=False)
        >>> sampler.set_epoch(4)
        >>> list(sampler)
        [(4, [1, 0])]
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the epoch with each of this rank's batches."""
        for rows in super().__iter__():
            yield self.epoch, rows


class _SizedOnly(Dataset):
    """What `DistributedSampler` wants of a data set: its length."""

    def __init__(self, rows: Sized) -> None:
        self._rows = len(rows)

    def __len__(self) -> int:
        return self._rows


class FixedBatches(Dataset):
    """A data set whose rows are whole batches of another, in an order that stays.

    For ``overfit_batches``, under which Lightning replaces the sampler by one that yields single row numbers.

    Args:
        dataset: A data set that takes a list of row numbers.
        batches: The row numbers of each batch.
    """

    def __init__(self, dataset: Any, batches: Sequence[list[int]]) -> None:
        self.dataset = dataset
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.batches[index]]


def _group(batches: Sequence[np.ndarray], size: int) -> list[list[np.ndarray]]:
    return [list(batches[first : first + size]) for first in range(0, len(batches), size)]


def padding_share(lengths: Sequence[int] | np.ndarray, batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding in batches padded to their longest row, in [0, 1).

    Example:
        >>> padding_share([1, 4, 3], [[0, 1], [2]])
        0.2727272727272727
    """
    lengths = np.asarray(lengths)
    padded = sum(len(batch) * int(lengths[list(batch)].max()) for batch in batches)
    return 1.0 - float(sum(int(lengths[list(batch)].sum()) for batch in batches)) / padded
