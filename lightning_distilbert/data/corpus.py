"""Raw text tokenised once, into a memory-mapped cache that is whole or not there."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import Dataset

from lightning_distilbert.data.encoding import EncodedRow
from lightning_distilbert.data.text_files import Part, chunks
from lightning_distilbert.errors import DistillationError, MissingExtraError, require

FORMAT = 1  # of the cache; another number makes all of them anew
MANIFEST, COUNTS = "corpus.json", "counts.npy"
STATISTICS = ("texts", "tokens", "short", "short_tokens", "unknown")


@dataclass(frozen=True)
class Sequences:
    """Turns texts into sequences of tokens, as the code of DistilBERT does (``lm_seqs_dataset.py``).

    A text of more tokens than there is room for is cut into pieces, each between special tokens of its own. Then those
    are dropped that are too short, or of which too many tokens are unknown.

    Attributes:
        tokenizer: A transformers tokenizer.
        max_length: Tokens of a sequence at most, special ones included.
        min_length: Tokens of a sequence at least, special ones included.
        max_unknown: Sequences are kept where a smaller share of all tokens than this is unknown.
        pack: Whether texts that follow each other in a document share a sequence as long as whole ones fit.

    Raises:
        DistillationError: If the lengths leave no sequence possible.
    """

    tokenizer: Any
    max_length: int = 128
    min_length: int = 12
    max_unknown: float = 0.5
    pack: bool = False
    prefix: tuple[int, ...] = field(init=False)
    suffix: tuple[int, ...] = field(init=False)
    glue: str = field(init=False)  # before a text that goes on in a document: vocabularies may spell " a" unlike "a"

    def __post_init__(self) -> None:
        before, after = _special_tokens(self.tokenizer)
        object.__setattr__(self, "prefix", before)
        object.__setattr__(self, "suffix", after)
        object.__setattr__(self, "glue", " " if self.pack and _spells_spaces(self.tokenizer) else "")
        special = len(before) + len(after)
        if self.max_length <= special:
            raise DistillationError(
                f"max_length={self.max_length} leaves no room: the tokenizer adds {special} special tokens."
            )
        check_sequences(self.max_length, self.min_length, self.max_unknown)

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        """Make the sequences of texts that follow each other.

        Args:
            texts: The texts, and ``""`` where a document ends.

        Returns:
            ``input_ids``, the tokens of all sequences one after the other; ``lengths``, of shape ``(sequences,)``; and
            numbers: ``texts``, ``tokens`` and ``short`` and ``unknown`` sequences dropped, with the ``short_tokens``
            that were in the former.
        """
        going_on = [False, *map(bool, texts[:-1])]
        given = [self.glue * after + text for text, after in zip(texts, going_on, strict=True) if text]
        encoded = self.tokenizer(
            given,
            add_special_tokens=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # it would say that texts are longer than the model takes
        )["input_ids"]
        unknown_id = self.tokenizer.unk_token_id
        kept, short, short_tokens, unknown = [], 0, 0, 0
        for row in self._packed(texts, iter(encoded)) if self.pack else self._pieces(encoded):
            sequence = np.fromiter(itertools.chain(self.prefix, row, self.suffix), dtype=np.int32)
            if len(sequence) < self.min_length:
                short, short_tokens = short + 1, short_tokens + len(row)
            elif np.count_nonzero(sequence == unknown_id) >= self.max_unknown * len(sequence):
                unknown += 1
            else:
                kept.append(sequence)
        tokens = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int32)
        return {
            "input_ids": tokens.astype(self.dtype),
            "lengths": np.array([len(sequence) for sequence in kept], dtype=np.int32),
            "texts": len(given),
            "tokens": len(tokens),
            "short": short,
            "short_tokens": short_tokens,
            "unknown": unknown,
        }

    @property
    def dtype(self) -> str:
        """The smallest type that holds every token."""
        return "uint16" if max(self.tokenizer.get_vocab().values()) < 2**16 else "int32"

    @property
    def room(self) -> int:
        """Tokens of text in a sequence at most."""
        return self.max_length - len(self.prefix) - len(self.suffix)

    def options(self) -> dict[str, Any]:
        """Return what the sequences of a text depend on, as plain values."""
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "max_length": self.max_length,
            "min_length": self.min_length,
            "max_unknown": self.max_unknown,
            "pack": self.pack,
        } | ({"glue": self.glue} if self.glue else {})

    def _pieces(self, encoded: Sequence[list[int]]) -> Iterator[list[int]]:
        for tokens in encoded:
            for start in range(0, len(tokens), self.room):
                yield tokens[start : start + self.room]

    def _packed(self, texts: Sequence[str], encoded: Iterator[list[int]]) -> Iterator[list[int]]:
        row: list[int] = []
        for text in texts:
            tokens = next(encoded) if text else []
            if row and (not text or len(row) + len(tokens) > self.room):
                yield row
                row = []
            *full, last = [*self._pieces([tokens])] or [[]]
            yield from full
            row = row + last
        if row:
            yield row


def check_sequences(max_length: int, min_length: int, max_unknown: float) -> None:
    """Refuse options of `Sequences` that leave no sequence.

    Raises:
        DistillationError: If one is out of range.

    Example:
        >>> check_sequences(128, 12, 0.5)
    """
    if min_length > max_length:
        raise DistillationError(
            f"min_length={min_length} is above max_length={max_length}: every sequence would be dropped."
        )
    if not 0.0 < max_unknown <= 1.0:
        raise DistillationError(f"max_unknown={max_unknown}: it is a share, 0 < max_unknown <= 1.")


def _special_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that a tokenizer puts before and after a text."""
    inner, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    first = next(place for place in range(len(whole)) if whole[place : place + len(inner)] == inner)
    return tuple(whole[:first]), tuple(whole[first + len(inner) :])


def _spells_spaces(tokenizer: Any) -> bool:
    """Tell whether a word after a space has other tokens than the same word at the beginning of a text."""
    first, later, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", " a", "a a"))
    return first != later and list(both) == [*first, *later]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what a tokenizer does: its vocabulary, rules and special tokens.

    Truncation and padding are left out: they are the state of the last call.

    Args:
        tokenizer: A transformers tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    else:
        options = {name: str(value) for name, value in tokenizer.init_kwargs.items()}
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "options": options}
    content["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Corpus(Dataset):
    """Sequences of tokens in a folder, memory-mapped. A row is taken by its number, and rows by a list of numbers.

    Attributes:
        folder: Where it is.
        lengths: The number of tokens of each row, of shape ``(rows,)``.
        manifest: What the cache was made of and with, and what was dropped.

    Args:
        folder: The folder that `build_corpus` made.

    Raises:
        DistillationError: If it is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = _read_manifest(self.folder)
        self._tokens: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        for batch in _batches(self.folder, [name for name in self.manifest["files"] if name.endswith(".arrow")]):
            self._tokens.append(batch.column("input_ids").flatten().to_numpy())  # a view of the file
            lengths.append(batch.column("lengths").flatten().to_numpy())
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int32)
        found = [len(self.lengths), int(self.lengths.sum()), sum(map(len, self._tokens)), int(self.counts().sum())]
        rows, tokens = self.manifest["rows"], self.manifest["tokens"]
        if found != [rows, tokens, tokens, tokens]:
            raise DistillationError(
                f"The cache of tokens {self.folder} is damaged: it has {found[0]} rows and {found[2]} tokens and "
                f"should have {rows} and {tokens}."
            )
        # where each row starts, counted from the first token of its batch
        self._batch = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(part) for part in lengths])
        self._starts = np.concatenate([np.cumsum(part, dtype=np.int64) - part for part in lengths])
        self._rows: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> Corpus:
        """Return these rows alone, numbered anew.

        Args:
            rows: Their numbers.
        """
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        part.lengths = self.lengths[rows]
        return part

    def counts(self) -> np.ndarray:
        """Return how often each token of the vocabulary occurs in the whole corpus."""
        try:
            counts: np.ndarray = np.load(self.folder / COUNTS, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DistillationError(f"The cache of tokens {self.folder} is damaged: {COUNTS}: {error}.") from error
        return counts

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (list, np.ndarray)):
            return [self._row(int(number)) for number in index]
        return self._row(int(index))

    def _row(self, index: int) -> EncodedRow:
        length = self.lengths[index]
        row = index if self._rows is None else int(self._rows[index])
        start = self._starts[row]
        return {"input_ids": self._tokens[self._batch[row]][start : start + length], "row": row}

    def __getstate__(self) -> dict[str, Any]:
        # a worker that is not forked opens the files itself
        return {"folder": self.folder, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]
        if state["rows"] is not None:
            self._rows, self.lengths = state["rows"], self.lengths[state["rows"]]


def build_corpus(
    parts: Sequence[Part], sequences: Sequences, cache_dir: str | Path, num_proc: int | None = None, name: str = "text"
) -> Corpus:
    """Tokenise a corpus, or find it in the cache.

    The cache is a folder of Arrow files, named by a hash of the parts (of a file: path, size, time of change and the
    first 64 KiB), of the tokenizer's content, and of the options. It is built beside its place and moved there when it
    is whole. One that is damaged is built anew.

    Args:
        parts: The parts of the corpus.
        sequences: How texts become sequences.
        cache_dir: Where caches are kept.
        num_proc: Processes that tokenise; None leaves it to the tokenizer's threads.
        name: What messages call it.

    Returns:
        The corpus.

    Raises:
        DistillationError: If there is no text, none is left, or a part cannot be read.
        MissingExtraError: If `datasets` is not installed.
    """
    made_of = {"format": FORMAT, "options": sequences.options(), "parts": [part.fingerprint() for part in parts]}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(cache_dir).expanduser() / key
    if folder.exists():
        try:
            return Corpus(folder)
        except DistillationError as error:
            rank_zero_warn(f"{error} It is built anew.")
            shutil.rmtree(folder, ignore_errors=True)  # another process may be at it too
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    building = Path(tempfile.mkdtemp(prefix=f"{key}.{_builder()}{os.getpid()}-", dir=folder.parent))
    try:
        manifest = _build(parts, sequences, building, num_proc, name, key)
        try:
            os.replace(building, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    rank_zero_info(f"{describe_corpus(manifest, name)}, kept in {folder}")
    return Corpus(folder)


def describe_corpus(manifest: dict[str, Any], name: str) -> str:
    """Say in a line what was made of a corpus and what was dropped."""
    rows, tokens, texts = (f"{manifest[key]:,}" for key in ("rows", "tokens", "texts"))
    dropped = f"{manifest['short']:,} too short and {manifest['unknown']:,} mostly unknown ones dropped"
    return f"{name}: {rows} sequences of {tokens} tokens from {texts} texts, {dropped}, in {manifest['seconds']} s"


def _build(
    parts: Sequence[Part], sequences: Sequences, folder: Path, num_proc: int | None, name: str, key: str
) -> dict[str, Any]:
    datasets = require("datasets", extra="data")
    began = time.monotonic()
    if next(_chunk_rows(parts), None) is None:
        raise DistillationError(f"{name}: there is no text in {_named(parts)}. Give it some, or leave it out.")
    texts = folder / "texts"
    try:
        source = datasets.Dataset.from_generator(
            _chunk_rows,
            features=datasets.Features({"texts": datasets.Sequence(datasets.Value("string"))}),
            cache_dir=str(texts),
            gen_kwargs={"parts": list(parts)},
            writer_batch_size=16,  # rows are large: a quarter of a megabyte each
        )
    except Exception as error:
        raise _own_error(error) or error from error
    columns: dict[str, Any] = {statistic: datasets.Value("int64") for statistic in STATISTICS}
    columns["input_ids"] = datasets.Sequence(datasets.Value(sequences.dtype))
    columns["lengths"] = datasets.Sequence(datasets.Value("int32"))
    tokens = source.map(
        _Tokenise(sequences),
        remove_columns=["texts"],
        features=datasets.Features(columns),
        cache_file_name=str(folder / "tokens.arrow"),
        new_fingerprint=key,
        num_proc=min(num_proc, len(source)) if num_proc and num_proc > 1 else None,
        writer_batch_size=16,
        desc=f"tokenise {name}",
    )
    files = [Path(entry["filename"]) for entry in tokens.cache_files]
    totals = {statistic: int(sum(tokens.with_format("numpy")[statistic][:])) for statistic in STATISTICS}
    del source, tokens
    shutil.rmtree(texts)
    counts = np.zeros(max(sequences.tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    rows = 0
    for batch in _batches(folder, [file.name for file in files]):
        counts += np.bincount(batch.column("input_ids").flatten().to_numpy(), minlength=len(counts))
        rows += len(batch.column("lengths").flatten())
    if rows == 0:
        raise DistillationError(
            f"{name}: not one sequence is left of {totals['texts']} texts: {totals['short']} are shorter than "
            f"min_length={sequences.min_length} tokens and {totals['unknown']} mostly unknown. Lower min_length, or "
            "join short texts: pack=True."
        )
    np.save(folder / COUNTS, counts, allow_pickle=False)
    manifest = {
        "format": FORMAT,
        "options": sequences.options(),
        "rows": rows,
        **totals,
        "seconds": round(time.monotonic() - began, 1),
        "files": {file.name: file.stat().st_size for file in [*files, folder / COUNTS]},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def _batches(folder: Path, names: Sequence[str]) -> Iterator[Any]:
    pyarrow, ipc = require("pyarrow", extra="data"), require("pyarrow.ipc", extra="data")
    for name in names:
        try:
            yield from ipc.open_stream(pyarrow.memory_map(str(folder / name)))
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DistillationError(f"The cache of tokens {folder} is damaged: {name}: {error}.") from error


def _chunk_rows(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for texts in chunks(part):
            yield {"texts": texts}


class _Tokenise:
    """`Sequences` as `datasets.Dataset.map` calls it."""

    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.sequences(row["texts"])


def _own_error(error: BaseException | None) -> BaseException | None:
    """Find our own error behind one of the `datasets` library, which says only that reading failed."""
    while error is not None and not isinstance(error, (DistillationError, MissingExtraError)):
        error = error.__cause__ or error.__context__
    return error


def _named(parts: Sequence[Part]) -> str:
    names = [str(getattr(part, "path", None) or f"the {type(part).__name__.lower()} passed in") for part in parts]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DistillationError(f"{folder} is no cache of tokens: its {MANIFEST} cannot be read ({error}).") from error
    if manifest.get("format") != FORMAT:
        raise DistillationError(f"{folder} has the format {manifest.get('format')}, and this version reads {FORMAT}.")
    for name, size in expected.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise DistillationError(
                f"The cache of tokens {folder} is damaged: {name} has {found} bytes and should have {size}."
            )
    return manifest


def _remove_abandoned(folder: Path) -> None:
    """Remove what builds of this corpus left that were killed on this machine."""
    start = f"{folder.name}.{_builder()}"
    for path in folder.parent.glob(f"{start}*"):
        pid = path.name.removeprefix(start).split("-")[0]
        if Path("/proc").exists() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _builder() -> str:
    # folders may be shared between machines, and process numbers are not
    # the plus sign, which no name of a machine has, tells where that name ends
    return f"building-{platform.node()}+"


def is_corpus(path: Any) -> bool:
    """Tell whether a path is a folder that `build_corpus` made.

    Example:
        >>> is_corpus("no/such/folder")
        False
    """
    return isinstance(path, (str, Path)) and (Path(path).expanduser() / MANIFEST).is_file()
