"""A loader whose place in an epoch is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset


def same_batches(now: Mapping[str, int], then: Mapping[str, int]) -> bool:
    """Tell whether batches are made as those of a checkpoint were, and warn where not.

    Args:
        now: The signature of what makes them.
        then: That in the checkpoint.
    """
    changed = [f"{name} was {then.get(name)} and is {value}" for name, value in now.items() if then.get(name) != value]
    if changed:
        rank_zero_warn(
            f"The place in the training data is not restored, since its batches are others now: {', '.join(changed)}. "
            "The epoch starts with its first batch."
        )
    return not changed


class ResumableLoader(DataLoader):
    """A `DataLoader` of whole batches that goes on in the middle of an epoch.

    Lightning saves the state of a loader that has `state_dict` and `load_state_dict`. It counts the batches that
    training has finished, not those that workers prepared ahead or that an error spoiled, and the sampler passes over
    them without reading a row. After resuming it keeps its own count of epochs: Lightning counts an epoch that
    ``max_steps`` cut short as a whole one.

    It draws no number from torch's global generator, which every plain `DataLoader` does once an epoch.

    Args:
        dataset: A data set that takes a list of row numbers.
        sampler: A `LengthGroupedSampler`, or another that yields lists of row numbers and has `epoch`, `set_epoch`,
            `skip` (the batches to pass over next time) and `signature`.
        trainer: The Trainer whose progress tells which batches are finished; None counts those handed out.
        options: Further arguments of `DataLoader`.

    Example:
        >>> from lightning_distilbert.data import LengthGroupedSampler
        >>> rows = torch.arange(6)
        >>> loader, other = (ResumableLoader(rows, LengthGroupedSampler([1] * 6, 2)) for _ in range(2))
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> other.load_state_dict(loader.state_dict())
        >>> [batch.tolist() for batch in batches] == [batch.tolist() for batch in other]
        True
    """

    def __init__(self, dataset: Dataset | Any, sampler: Any, trainer: Any = None, **options: Any) -> None:
        super().__init__(dataset, batch_size=None, sampler=sampler, generator=torch.Generator(), **options)
        self._trainer = trainer
        self._epoch: int | None = None  # of the pass under way
        self._handed_out = 0  # its batches, those passed over included
        self._ahead = 0  # by how many batches this loader is ahead of Lightning's count
        self._start: tuple[int, int] | None = None  # epoch and batch of a checkpoint
        self._next_epoch: int | None = None  # our own count, after resuming

    # a generator: the pass begins when its first batch is wanted, when Lightning has told the sampler the epoch
    def __iter__(self) -> Any:
        """Yield the batches of an epoch, or the rest of it."""
        sampler: Any = self.sampler
        first = 0
        if self._start is not None:
            self._next_epoch, first = self._start
            self._start = None
        if self._next_epoch is not None:
            sampler.set_epoch(self._next_epoch)
            self._next_epoch += 1
        sampler.skip = first
        self._epoch, self._handed_out = sampler.epoch, first
        progress = self._progress()
        self._ahead = first - progress.ready if progress is not None else 0
        assert isinstance(self.generator, torch.Generator)
        self.generator.manual_seed(sampler.epoch)  # seeds the workers, alike in a resumed run
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last finished batch, and what tells whether data are the same."""
        sampler: Any = self.sampler
        if self._start is not None:
            epoch, batches = self._start
        elif self._epoch is None:
            epoch, batches = sampler.epoch, 0
        else:
            epoch, batches, length = self._epoch, self._handed_out, len(self)
            progress = self._progress()
            if progress is not None:
                batches = progress.processed + self._ahead
                length = min(length, self._trainer.num_training_batches + self._ahead)
            if batches >= length:
                epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, "data": sampler.signature()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place; with a warning, and not, if batches are made of other data or in another way.

        Args:
            state: What `state_dict` returned.
        """
        sampler: Any = self.sampler
        if same_batches(sampler.signature(), state["data"]):
            self._start = state["epoch"], state["batches"]

    def _progress(self) -> Any:
        """Return Lightning's counts of batches in this epoch; None outside of a fit."""
        if getattr(getattr(self._trainer, "state", None), "fn", None) != "fit":
            return None
        return self._trainer.fit_loop.epoch_loop.batch_progress.current
