"""What all data modules share: splits read and tokenised once, and loaders with batches of similar length."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distilbert._compat import LightningDataModule
from lightning_distilbert.data.batching import FixedBatches, LengthGroupedSampler
from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
from lightning_distilbert.data.readers import Row, describe, read_rows
from lightning_distilbert.data.resume import ResumableLoader
from lightning_distilbert.data.sources import is_hub_name, load_hub, open_splits
from lightning_distilbert.data.text_files import TEXT_SUFFIXES, TextFile, kind_of_text
from lightning_distilbert.doctor import label_names
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import load_tokenizer, max_positions, max_tokens

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}
TYPES = "token_type_ids"


class TextData(LightningDataModule):
    """Base of the data modules: a subclass says how one split is encoded (`encode_split`).

    Without a `tokenizer` it takes that of the module in the Trainer, so that data and model agree. Splits are read
    and tokenised when a stage first needs them, and once.

    Args:
        source: Where the splits come from; see `lightning_distilbert.data.open_splits`.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Rows in a training batch on one device.
        eval_batch_size: Rows in another batch; None: twice `batch_size`, since no gradients are held.
        max_length: Tokens kept of a text at most; never more than tokenizer and student take.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches. Rows are tokenised beforehand, so 0 is fast enough mostly.
        pad_to_multiple_of: Round padded lengths up, as for tensor cores; None does not.
        seed: Of the order of training rows.
        unlabelled: Further training rows, of which only a teacher knows what they say: a file, rows, or another source
            with a training split; of single texts also a text file, plain, ``.gz`` or ``.zst``, with one in each line.
            They are mixed with the others, or stand alone where `source` has no ``train``.

    Raises:
        DistillationError: If a size is out of range.
    """

    # what yields the rows of training batches; `EpochSampler` for a data set that draws anew in each epoch
    train_sampler: type[LengthGroupedSampler] = LengthGroupedSampler

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
        unlabelled: Any = None,
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
        self.unlabelled = unlabelled
        self._splits: dict[str, Any] | None = None
        self._encoded: dict[str, Any] = {}
        self._encoded_for: Any = None
        self._teacher_vocabulary: Any = None
        self._typed_tokenizer: tuple[Any, Any] | None = None  # the tokenizer as it is given, and with token types

    def prepare_data(self) -> None:
        """Download hub data sets, which Lightning does once per node before any process calls `setup`."""
        for source in (self.source, self.unlabelled):
            if is_hub_name(source):
                load_hub(source)

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise the splits of a stage, unless that is done.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all splits that there are.

        Raises:
            DistillationError: If the stage's split is missing, or a row of it is bad, or there are unlabelled rows and
                no teacher.
        """
        self._check_module()
        if stage in ("fit", None):
            self._meet_teacher()
        self._check_tokenizer()
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
        return _vocabulary(tokenizer), TYPES in tokenizer.model_input_names, self.effective_max_length()

    def splits(self) -> dict[str, Any]:
        """Return what `find_splits` found, once."""
        if self._splits is None:
            self._splits = self.find_splits()
        return self._splits

    def has(self, split: str) -> bool:
        """Tell whether there is such a split; predictions fall back to the test split."""
        return self.has_source(split) or (split == "train" and self.unlabelled is not None)

    def has_source(self, split: str) -> bool:
        """Tell whether `source` has such a split."""
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

    def read_unlabelled(self, columns: Sequence[str]) -> list[Row]:
        """Read the rows of `unlabelled`.

        Args:
            columns: The columns of text; a list of strings is the rows of one column.

        Raises:
            DistillationError: If it has splits and no training split among them.
        """
        source = self.unlabelled
        if isinstance(source, Sequence) and not isinstance(source, str) and source and isinstance(source[0], str):
            source = [{columns[0]: text} for text in source]
        splits = open_splits(source)
        if "train" not in splits:
            raise DistillationError(
                f"unlabelled: {describe(source)} has only the splits {list(splits)}. Name the file or pass the rows "
                "that are meant."
            )
        file = splits["train"]
        if isinstance(file, (str, Path)) and self.delimiter is None and kind_of_text(Path(file)) in TEXT_SUFFIXES:
            return self._read_lines(Path(file).expanduser(), columns)
        return read_rows(file, self.columns, self.header, self.delimiter)

    def _read_lines(self, file: Path, columns: Sequence[str]) -> list[Row]:
        if len(columns) > 1:
            raise DistillationError(
                f"unlabelled: {file} has one text in each line, and a row here has {len(columns)}, {list(columns)}. "
                "Give a table or JSON lines with these columns."
            )
        lines = tqdm(TextFile(file).texts(), desc=f"read {file.name}", unit=" rows", delay=1, leave=False)
        rows = [{columns[0]: line} for line in lines if line]
        if not rows:
            raise DistillationError(f"unlabelled: {file} holds no text.")
        return rows

    def encode_texts(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        extras: dict[str, Any] | None,
        name: str,
        train: bool = False,
    ) -> EncodedDataset:
        """Tokenise texts; for training also with the teacher's tokenizer, where it is another.

        Args:
            texts: The texts, or the first of each pair.
            pairs: The second of each pair.
            extras: Values that go along with each row.
            name: What the progress bar says.
            train: Whether the teacher reads them.

        Returns:
            The encoded rows.
        """
        data = encode(self.get_tokenizer(), texts, pairs, self.effective_max_length(), extras, name=name)
        other = self.teacher_tokenizer() if train else None
        if other is not None:
            data.teacher = encode(other, texts, pairs, self.teacher_length(other), name=f"{name} for the teacher")
        elif train:
            self.check_teacher_length(data.lengths)
        return data

    def teacher_tokenizer(self) -> Any:
        """Return the tokenizer of the attached module's teacher if it is another than the student's, else None."""
        return getattr(self.attached_module(), "teacher_tokenizer", None)

    def get_tokenizer(self) -> Any:
        """Return the tokenizer: the one given, or the attached module's.

        Raises:
            DistillationError: If there is neither, or it cannot be loaded.
        """
        if isinstance(self.tokenizer, (str, Path)):
            self.tokenizer = load_tokenizer(self.tokenizer)
        tokenizer = self.tokenizer if self.tokenizer is not None else getattr(self.attached_module(), "tokenizer", None)
        if tokenizer is None:
            raise DistillationError(
                f"{type(self).__name__} has no tokenizer, and no module with one is attached. "
                "Pass tokenizer=... (a folder, a hub name or an object)."
            )
        return self._typed(tokenizer)

    def _typed(self, tokenizer: Any) -> Any:
        """Let token types come along where the teacher reads them and the student's tokenizer gives none.

        Without them a BERT takes both parts of a pair for the first; a DistilBERT is not shown them.
        """
        teacher = self._teacher()
        if teacher is None or TYPES in getattr(tokenizer, "model_input_names", (TYPES,)):
            return tokenizer
        theirs = teacher.tokenizer
        if theirs is None:  # a finished module
            reads = getattr(teacher.config, "type_vocab_size", 0) > 1
        else:
            reads = TYPES in theirs.model_input_names and theirs.get_vocab() == tokenizer.get_vocab()
        if not reads:
            return tokenizer
        if self._typed_tokenizer is None or self._typed_tokenizer[0] is not tokenizer:
            typed = copy.deepcopy(tokenizer)  # the student's own is saved with it, and stays as it is
            typed.model_input_names = [*tokenizer.model_input_names, TYPES]
            self._typed_tokenizer = (tokenizer, typed)
        return self._typed_tokenizer[1]

    def _teacher(self) -> Any:
        """Return the teacher of the attached `DistillationModule`, or None."""
        return getattr(getattr(self.attached_module(), "distiller", None), "teacher", None)

    def teacher_length(self, tokenizer: Any) -> int:
        """Return `max_length`, or what the teacher's own tokenizer or positions allow where that is lower.

        Args:
            tokenizer: The teacher's.
        """
        return min(self.max_length, self._teacher_room(tokenizer))

    def check_teacher_length(self, lengths: np.ndarray) -> None:
        """Refuse rows that are longer than a teacher with the same tokenizer reads.

        Args:
            lengths: The tokens of each training row.

        Raises:
            DistillationError: If one is.
        """
        if self.teacher_tokenizer() is not None or not len(lengths):
            return
        longest, limit = int(lengths.max()), self._teacher_room(None)
        if longest > limit:
            raise DistillationError(
                f"Training rows have up to {longest} tokens, and the teacher reads {limit} at most. Set "
                f"max_length={limit} in the data, or take a teacher of longer texts."
            )

    def _teacher_room(self, tokenizer: Any) -> int:
        positions = max_positions(getattr(self._teacher(), "config", None))
        return positions if tokenizer is None else min(int(tokenizer.model_max_length), positions)

    def _check_module(self) -> None:
        """Refuse a task that reads other batches, and a teacher without its head, before anything is tokenised."""
        stage = getattr(getattr(self.trainer, "state", None), "fn", None)
        if stage not in ("fit", "validate", "test"):  # texts alone are answered by any task
            return
        module = self.attached_module()
        task = getattr(module, "task", None)
        names = getattr(task, "data", ())
        own = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]  # and not a user's
        if own and names and not any(cls.__name__ in names for cls in type(self).__mro__):
            raise DistillationError(
                f"The task {type(task).__name__} learns from the batches of {' or '.join(names)}, and the data are a "
                f"{type(self).__name__}. Change one of the two."
            )
        if stage == "fit" and hasattr(module, "check_teacher"):
            module.check_teacher()

    def _check_tokenizer(self) -> None:
        """Refuse a tokenizer of the data's own under which the module would read another text."""
        if self.tokenizer is None:
            return
        try:
            theirs = getattr(self.attached_module(), "tokenizer", None)
        except DistillationError:  # a module of finished models has none
            return
        if theirs is None or not hasattr(theirs, "get_vocab"):
            return
        ours, theirs = self.get_tokenizer().get_vocab(), theirs.get_vocab()
        if ours != theirs:
            raise DistillationError(
                f"The data has a tokenizer of its own, of {len(ours)} tokens, and the module one of {len(theirs)} with "
                "other ids: the student would read another text. Leave tokenizer out of the data, or give the module "
                "the same one."
            )

    def check_named(self, names: Sequence[str]) -> None:
        """Refuse to take names for the outputs of a trained head that has none: the order would be a guess.

        Args:
            names: The names of the labels, which are known from the rows alone.

        Raises:
            DistillationError: If such a head is compared with them: a teacher's, or in an evaluation the model's.
        """
        module = self.attached_module()
        teacher, student = self._teacher(), getattr(module, "student", None)
        if getattr(getattr(self.trainer, "state", None), "fn", None) == "fit":
            compared = teacher is not None and "logits" in module.distiller.requires
            owner, config = (teacher.name, teacher.config) if compared else ("", None)
        else:
            trained = isinstance(student, PreTrainedModel) and not getattr(student.config, "fresh_head", False)
            owner, config = ("the model", student.config) if trained and student is not None else ("", None)
        if config is not None and label_names(config) is None and getattr(config, "id2label", None):
            told = f"The labels of the rows have the names {list(names)}, and "
            if len(config.id2label) != len(names):
                raise DistillationError(f"{told}{owner} has {len(config.id2label)} outputs: it is of another task.")
            raise DistillationError(
                f"{told}the outputs of {owner} have none, so that nobody says which is which. Name the labels in the "
                "order of its outputs: labels=[...]."
            )

    def attached_module(self) -> Any:
        """Return the LightningModule in the same Trainer, or None."""
        return getattr(self.trainer, "lightning_module", None)

    def effective_max_length(self) -> int:
        """Return `max_length`, or what the tokenizer or the student's positions allow where that is lower."""
        tokenizer, student = self.get_tokenizer(), getattr(self.attached_module(), "student", None)
        limit = max_tokens(tokenizer, student) if isinstance(student, PreTrainedModel) else tokenizer.model_max_length
        return min(self.max_length, limit)

    def train_dataloader(self) -> DataLoader:
        """Return batches of similar length in a new order each epoch."""
        return self._loader(self._ready("train", "fit"), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        """Return the validation loader (or loaders); an empty list where there is no such split."""
        if not self.has("validation"):
            # what Lightning says of it is no news: the splits were named by the user
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero", UserWarning)
            return []
        return self._eval_loaders("validation", "validate")

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

    def _meet_teacher(self) -> None:
        """Check that unlabelled rows have a teacher, and encode the training rows again for another tokenizer of it."""
        module = self.attached_module()
        if self.unlabelled is not None and hasattr(module, "distiller"):
            owners = [module, *getattr(self.trainer, "callbacks", [])]
            if all(getattr(owner, "distiller", None) is None for owner in owners):
                raise DistillationError(
                    "There are unlabelled rows and no teacher, so nothing can be learnt from them. Give the module a "
                    "teacher, or leave `unlabelled` out."
                )
        other = self.teacher_tokenizer()
        vocabulary = None if other is None else _vocabulary(other)
        if vocabulary != self._teacher_vocabulary:
            self._encoded.pop("train", None)
            self._teacher_vocabulary = vocabulary

    def _collate(self, train: bool = False) -> Any:
        other = self.teacher_tokenizer() if train else None
        return functools.partial(
            pad_batch,
            tokenizer=Padding.of(self.get_tokenizer()),
            multiple_of=self.pad_to_multiple_of,
            teacher=None if other is None else Padding.of(other),
        )

    def _loader(self, dataset: Any, batch_size: int, shuffle: bool) -> DataLoader:
        ranks: dict[str, int] = getattr(self.trainer, "distributed_sampler_kwargs", None) or {}
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        kind = self.train_sampler if shuffle and not overfit else LengthGroupedSampler
        sampler: Any = kind(dataset.lengths, batch_size, shuffle=shuffle and not overfit, seed=self.seed, **ranks)
        if overfit:
            # Lightning then replaces the sampler by one of single rows, and shares them out itself
            whole = LengthGroupedSampler(dataset.lengths, batch_size, shuffle=False, num_replicas=1, rank=0)
            dataset, sampler = FixedBatches(dataset, list(whole)), None
        options: dict[str, Any] = {
            "collate_fn": self._collate(train=shuffle),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
        }
        if shuffle and not overfit:
            return ResumableLoader(dataset, sampler, self.trainer, **options)
        # with a generator of its own a validation takes no number from the training's
        return DataLoader(dataset, batch_size=None, sampler=sampler, generator=torch.Generator(), **options)

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


def _vocabulary(tokenizer: Any) -> tuple[type, int]:
    """Return what tells two tokenizers apart."""
    return type(tokenizer), hash(frozenset(tokenizer.get_vocab().items()))
