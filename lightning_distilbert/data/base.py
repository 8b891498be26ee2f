"""What all data modules share: splits read and tokenised once, and loaders with batches of similar length."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_distilbert._compat import LightningDataModule
from lightning_distilbert.data.batching import FixedBatches, LengthGroupedSampler
from lightning_distilbert.data.encoding import Padding, pad_batch
from lightning_distilbert.data.readers import Row, describe, read_rows
from lightning_distilbert.data.sources import is_hub_name, load_hub, open_splits
from lightning_distilbert.errors import DistillationError

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}


class TextData(LightningDataModule):
    """Base of the data modules: a subclass says how one split is encoded (`encode_split`).

    Without a `tokenizer` it takes that of the module in the Trainer, so that data and model agree. Splits are read
    and tokenised when a stage first needs them, and once.

    Args:
        source: Where the splits come from; see `lightning_distilbert.data.open_splits`.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Rows in a training batch on one device.
        eval_batch_size: Rows in another batch; None: twice `batch_size`, since no gradients are held.
        max_length: Tokens kept of a text at most; never more than the tokenizer's own limit.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches. Rows are tokenised beforehand, so 0 is fast enough mostly.
        pad_to_multiple_of: Round padded lengths up, as for tensor cores; None does not.
        seed: Of the order of training rows.

    Raises:
        DistillationError: If a size is out of range.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 128,
        columns: list[str] | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        num_workers: int = 0,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
        for name, size in {**sizes, "pad_to_multiple_of": pad_to_multiple_of}.items():
            if size is not None and size < 1:
                raise DistillationError(f"{name}={size}: it has to be 1 or more.")
        if num_workers < 0 or seed < 0:
            raise DistillationError(f"num_workers={num_workers} and seed={seed} have to be 0 or more.")
        self.source = source
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.max_length = max_length
        self.columns = columns
        self.header = header
        self.delimiter = delimiter
        self.num_workers = num_workers
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        self._splits: dict[str, Any] | None = None
        self._encoded: dict[str, Any] = {}
        self._encoded_for: Any = None

    def prepare_data(self) -> None:
        """Download a hub data set, which Lightning does once per node before any process calls `setup`."""
        if is_hub_name(self.source):
            load_hub(self.source)

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise the splits of a stage, unless that is done.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all splits that there are.

        Raises:
            DistillationError: If the stage's split is missing, or a row of it is bad.
        """
        # the same data may serve a second module, of another tokenizer or with other labels
        encoded_for = self.depends_on()
        if encoded_for != self._encoded_for:
            self._encoded.clear()
            self._encoded_for = encoded_for
        splits = self.splits()
        wanted = STAGES[stage] if stage is not None else tuple(splits)
        if stage is not None and not self.has(wanted[0]):
            raise DistillationError(
                f"There is no split {wanted[0]!r}: {describe(self.source)} has only {list(splits)}. "
                "Add it, or pass a mapping from split to file."
            )
        for split in wanted:
            if split not in self._encoded and self.has(split):
                self._encoded[split] = self.encode_split(split)

    def encode_split(self, split: str) -> Any:
        """Read and tokenise one split.

        Args:
            split: ``train``, ``validation``, ``test`` or ``predict``.

        Returns:
            A data set that takes row numbers and lists of them and has `lengths`; or several for a split that needs
            several loaders.
        """
        raise NotImplementedError

    def find_splits(self) -> dict[str, Any]:
        """Find what there is in `source`, by split."""
        return open_splits(self.source)

    def depends_on(self) -> Any:
        """Return what the encoded rows depend on beside `source`: if it changes, they are made again."""
        tokenizer = self.get_tokenizer()
        return type(tokenizer), hash(frozenset(tokenizer.get_vocab().items())), self.effective_max_length()

    def splits(self) -> dict[str, Any]:
        """Return what `find_splits` found, once."""
        if self._splits is None:
            self._splits = self.find_splits()
        return self._splits

    def has(self, split: str) -> bool:
        """Tell whether there is such a split; predictions fall back to the test split."""
        return self._present(split) in self.splits()

    def split_source(self, split: str) -> Any:
        """Return where a split's rows come from."""
        return self.splits()[self._present(split)]

    def where(self, split: str) -> str:
        """Say in an error which rows are meant."""
        source = self.split_source(split)
        return str(source) if isinstance(source, (str, Path)) else f"The {split} split"

    def read_split(self, split: str) -> list[Row]:
        """Read a split's rows."""
        return read_rows(self.split_source(split), self.columns, self.header, self.delimiter)

    def get_tokenizer(self) -> Any:
        """Return the tokenizer: the one given, or the attached module's.

        Raises:
            DistillationError: If there is neither, or it cannot be loaded.
        """
        if isinstance(self.tokenizer, (str, Path)):
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            except (OSError, ValueError) as error:
                raise DistillationError(f"No tokenizer can be loaded from {self.tokenizer!r}: {error}") from error
        tokenizer = self.tokenizer if self.tokenizer is not None else getattr(self.attached_module(), "tokenizer", None)
        if tokenizer is None:
            raise DistillationError(
                f"{type(self).__name__} has no tokenizer, and no module with one is attached. "
                "Pass tokenizer=... (a folder, a hub name or an object)."
            )
        return tokenizer

    def attached_module(self) -> Any:
        """Return the LightningModule in the same Trainer, or None."""
        return getattr(self.trainer, "lightning_module", None)

    def effective_max_length(self) -> int:
        """Return `max_length`, or the tokenizer's limit where that is lower."""
        return min(self.max_length, self.get_tokenizer().model_max_length)

    def train_dataloader(self) -> DataLoader:
        """Return batches of similar length in a new order each epoch."""
        return self._loader(self._ready("train", "fit"), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        """Return the validation loader (or loaders); an empty list where there is no such split."""
        return self._eval_loaders("validation", "validate") if self.has("validation") else []

    def test_dataloader(self) -> Any:
        """Return the test loader (or loaders)."""
        return self._eval_loaders("test", "test")

    def predict_dataloader(self) -> Any:
        """Return a loader of the rows in their own order."""
        data = self._ready("predict", "predict")
        loaders = [self._ordered_loader(part) for part in (data if isinstance(data, list) else [data])]
        return loaders if isinstance(data, list) else loaders[0]

    def _present(self, split: str) -> str:
        return "test" if split == "predict" and "predict" not in self.splits() else split

    def _ready(self, split: str, stage: str) -> Any:
        if split not in self._encoded:
            self.setup(stage)
        return self._encoded[split]

    def _eval_loaders(self, split: str, stage: str) -> Any:
        data = self._ready(split, stage)
        if isinstance(data, list):
            return [self._loader(part, self.eval_batch_size, shuffle=False) for part in data]
        return self._loader(data, self.eval_batch_size, shuffle=False)

    def _collate(self) -> Any:
        return functools.partial(
            pad_batch, tokenizer=Padding.of(self.get_tokenizer()), multiple_of=self.pad_to_multiple_of
        )

    def _loader(self, dataset: Any, batch_size: int, shuffle: bool) -> DataLoader:
        ranks: dict[str, int] = getattr(self.trainer, "distributed_sampler_kwargs", None) or {}
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        sampler: Any = LengthGroupedSampler(
            dataset.lengths, batch_size, shuffle=shuffle and not overfit, seed=self.seed, **ranks
        )
        if overfit:
            # Lightning then replaces the sampler by one of single rows, and shares them out itself
            whole = LengthGroupedSampler(dataset.lengths, batch_size, shuffle=False, num_replicas=1, rank=0)
            dataset, sampler = FixedBatches(dataset, list(whole)), None
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            collate_fn=self._collate(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _ordered_loader(self, dataset: Any) -> DataLoader:
        # Lightning wraps the sampler to track indices, which it can do with plain batches only
        return DataLoader(
            dataset, batch_size=self.eval_batch_size, collate_fn=self._collate(), num_workers=self.num_workers
        )


def as_list(value: str | Sequence[str]) -> list[str]:
    """Return one name, or several, as a list.

    Example:
        >>> as_list("text"), as_list(["a", "b"])
        (['text'], ['a', 'b'])
    """
    return [value] if isinstance(value, str) else list(value)
