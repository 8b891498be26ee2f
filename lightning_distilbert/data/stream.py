"""Batches of a corpus that is read and tokenised while training goes on."""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_distilbert.data.batching import LengthGroupedSampler
from lightning_distilbert.data.corpus import Sequences
from lightning_distilbert.data.encoding import EncodedRow
from lightning_distilbert.data.resume import same_batches
from lightning_distilbert.data.text_files import Part, Rows, chunks, is_streamed
from lightning_distilbert.errors import DistillationError

Gather = Callable[[np.ndarray], list[np.ndarray]]
ROW_BITS = 24  # of a row's number within its chunk
END = 2**40  # the chunk at which a rank is that has no more


class ChunkStream(IterableDataset):
    """The chunks of texts of one rank, tokenised, in an order that does not depend on the number of workers.

    Chunks are dealt out to the ranks in turn, and a rank's to its workers in turn: every process reads all texts and
    tokenises its own share, which is what takes the time. The parts of a streamed data set are dealt out to the ranks
    as they are, where their number is a multiple of that of the ranks, so that no rank fetches what is another's.

    Args:
        parts: The parts of the corpus in the order of this epoch.
        sequences: How texts become sequences.
        rank: This process.
        ranks: The number of processes.
        start: The number of the rank's first chunk; those before are passed over and not tokenised.
    """

    def __init__(self, parts: Sequence[Part], sequences: Sequences, rank: int, ranks: int, start: int = 0) -> None:
        streamed = all(isinstance(part, Rows) and part.shard is not None for part in parts)
        self.deal = not (streamed and len(parts) % ranks == 0)
        self.parts = list(parts) if self.deal else list(parts[rank::ranks])
        self.sequences = sequences
        self.rank = rank
        self.ranks = ranks
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the sequences of each chunk, among those of this worker."""
        worker = get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        turn = number = 0
        for part in self.parts:
            for texts in chunks(part):
                mine = not self.deal or turn % self.ranks == self.rank
                turn += 1
                if mine:
                    if number >= self.start and (number - self.start) % workers == place:
                        yield number, self.sequences(texts)
                    number += 1


class StreamLoader:
    """Batches of a corpus that need not fit into memory or on the disk, one pass an epoch.

    A rank gathers `buffer` rows, makes batches of similar length of them in a new order, and gathers the next. Which
    rows these are does not depend on the number of workers. Each row comes exactly once per epoch over all ranks.

    Every rank has the same number of batches. Before each round the ranks tell each other how many rows they hold. As
    long as none has come to its end, all have as many; after that the rows of a round are exchanged and shared out
    anew, and none is padded, repeated or dropped.

    The place in an epoch is a few numbers per rank, the same on each, so that the one state that Lightning saves
    serves all. After resuming, texts before that place are read and not tokenised.

    Args:
        parts: The parts of the corpus; each epoch takes them in another order.
        sequences: How texts become sequences.
        collate: Makes a batch of ``(epoch, rows)``. The ``row`` of a row is a number of its own within the epoch.
        batch_size: Rows in a batch on one rank.
        buffer: Rows gathered at a time on one rank.
        seed: Of the order.
        num_workers: Processes that read and tokenise on this rank.
        rank: This process.
        ranks: The number of processes.
        trainer: The Trainer whose progress tells which batches are finished; None counts those handed out.
        gather: Returns the whole numbers that each rank gives to it; None asks `torch.distributed`.

    Raises:
        DistillationError: If the whole corpus has fewer rows than there are ranks.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        sequences: Sequences,
        collate: Callable[[tuple[int, list[EncodedRow]]], Any],
        batch_size: int,
        buffer: int = 8192,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        trainer: Any = None,
        gather: Gather | None = None,
    ) -> None:
        self.parts = list(parts)
        self.sequences = sequences
        self.collate = collate
        self.batch_size = batch_size
        # whole batches, and at least one row for each rank if a round has to be shared out
        self.buffer = max(buffer // batch_size * batch_size, batch_size, ranks)
        self.seed = seed
        self.num_workers = num_workers
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0
        self._gather = gather or (_Gather() if ranks > 1 else lambda values: [values])
        self._trainer = trainer
        self._start: dict[str, Any] | None = None  # a place to go on from
        self._next_epoch: int | None = None  # our own count, after resuming
        self._pass: dict[str, Any] = {}  # the pass under way
        self._rounds: deque[tuple[int, list[list[int]]]] = deque(maxlen=3)  # first batch, and each rank's place

    @property
    def sampler(self) -> StreamLoader:
        """This loader: Lightning tells the epoch to a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides on the order of the next pass.

        Args:
            epoch: Its number, from 0.
        """
        self.epoch = epoch

    # a generator: the pass begins when its first batch is wanted
    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch, or the rest of it."""
        if self._pass and not self._pass["begun"] and self._progress() is not None:
            # after resuming at the end of an epoch, Lightning fetches a batch, finds the epoch over, and begins again
            self._start = self._start or self._pass["start"]
        start, self._start = self._start, None
        if start is not None:
            self._next_epoch = start["epoch"]
        if self._next_epoch is not None:
            self.epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        place = start or self._beginning(self.epoch)
        first = place["batches"]
        self._pass = {"epoch": self.epoch, "start": start, "first": first, "handed_out": first}
        self._pass |= {"ahead": None, "begun": False, "ended": False}
        self._rounds.clear()
        self._rounds.append((place["round"], place["places"]))  # there is a place even if reading fails at once
        for number, rows in self._batches(place["round"], place["places"]):
            if number < first:
                continue
            batch = self.collate((self._pass["epoch"], rows))
            self._pass["handed_out"] = number + 1
            if not self._read_ahead():
                self._begin()
            yield batch
            # Lightning reads a batch ahead before it takes up its counts, and the next one after that
            self._begin()
        self._pass["ended"] = True

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last finished batch: an epoch, a round with each rank's place, and a batch."""
        state: dict[str, Any] = {"data": self.signature()}
        if self._start is not None:
            return state | self._start
        if not self._pass:
            return state | self._beginning(self.epoch)
        epoch, batches, limit = self._pass["epoch"], self._pass["handed_out"], float("inf")
        progress = self._progress()
        if progress is not None and self._pass["ahead"] is not None:
            batches = progress.processed + self._pass["ahead"]
            limit = self._trainer.num_training_batches + self._pass["ahead"]
        elif progress is not None:
            batches = self._pass["first"]
        if batches >= limit or (self._pass["ended"] and batches >= self._pass["handed_out"]):
            return state | self._beginning(epoch + 1)
        number, places = next(known for known in reversed(self._rounds) if known[0] <= batches)
        return state | {"epoch": epoch, "batches": batches, "round": number, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place; with a warning, and not, if batches are made of other data or in another way.

        Args:
            state: What `state_dict` returned.
        """
        if same_batches(self.signature(), state["data"]):
            self._start = {name: state[name] for name in ("epoch", "batches", "round", "places")}

    @functools.cached_property
    def _checksum(self) -> int:
        made_of = repr(([part.fingerprint() for part in self.parts], sorted(self.sequences.options().items())))
        return zlib.crc32(made_of.encode())

    def signature(self) -> dict[str, int]:
        """Return what the batches of an epoch depend on, as plain numbers, to compare with those of a checkpoint."""
        return {
            "parts": len(self.parts),
            "checksum of parts and options": self._checksum,
            "batch_size": self.batch_size,
            "buffer": self.buffer,
            "seed": self.seed,
            "processes": self.ranks,
        }

    def _beginning(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "batches": 0, "round": 0, "places": [[0, 0]] * self.ranks}

    def _batches(self, number: int, places: list[list[int]]) -> Iterator[tuple[int, list[EncodedRow]]]:
        """Yield the number and the rows of each batch of this rank, from the beginning of a round on."""
        epoch = self._pass["epoch"]
        streams = [part.fingerprint() for part in self.parts if isinstance(part, Rows) and is_streamed(part.rows)]
        draws = np.array([zlib.crc32(repr(streams).encode())], dtype=np.int64)
        if len({int(other[0]) for other in self._gather(draws)}) > 1:
            raise DistillationError(
                "Each process shuffles the streamed data set in another order, so that rows would come twice and "
                "others never. Give shuffle(seed=...) a seed."
            )
        stream = self._rows(epoch, *places[self.rank])
        rows: deque[EncodedRow] = deque()
        ended = False
        while True:
            # a few more than a round takes: what is left for the last one must reach each rank
            while len(rows) < self.buffer + self.ranks and not ended:
                row = next(stream, None)
                ended = row is None
                if row is not None:
                    rows.append(row)
            place = rows[0]["place"] if rows else [END, 0]
            told = self._gather(np.array([len(rows), ended, *place], dtype=np.int64))
            all_ended = all(other[1] for other in told)
            self._rounds.append((number, [other[2:].tolist() for other in told]))
            taken = [rows.popleft() for _ in range(len(rows) if all_ended else min(len(rows), self.buffer))]
            shared = any(other[1] for other in told)
            if shared:
                taken = _unpack(self._gather(_pack(taken)))
            if all_ended and len(taken) < self.ranks:
                if number == 0 or taken:
                    raise DistillationError(
                        f"The corpus has {len(taken)} sequences, which cannot be spread over {self.ranks} processes. "
                        "Use fewer devices, or lower min_length."
                    )
                return
            ranks, rank = (self.ranks, self.rank) if shared else (1, 0)
            lengths = [len(row["input_ids"]) for row in taken]
            order = LengthGroupedSampler(lengths, self.batch_size, True, self.seed, ranks, rank)
            order.set_epoch((epoch << 32) + number)
            for chosen in order:
                yield number, [taken[place] for place in chosen]
                number += 1
            if all_ended:
                return

    def _rows(self, epoch: int, chunk: int, first: int) -> Iterator[EncodedRow]:
        """Yield this rank's rows of an epoch from a place on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.parts))
        stream = ChunkStream([self.parts[place] for place in order], self.sequences, self.rank, self.ranks, chunk)
        if chunk == END:
            return
        with _forks_of_tokenizers(self.num_workers):
            # a generator of its own: a plain loader takes a number from that of the training
            options: dict[str, Any] = {"num_workers": self.num_workers, "generator": torch.Generator()}
            loaded = iter(DataLoader(stream, batch_size=None, collate_fn=_as_it_is, **options))
        for number, made in loaded:
            ends = np.cumsum(made["lengths"])
            for place, (end, length) in enumerate(zip(ends, made["lengths"], strict=True)):
                if number > chunk or place >= first:
                    row = ((number * self.ranks + self.rank) << ROW_BITS) + place
                    tokens = made["input_ids"][end - length : end]
                    yield {"input_ids": tokens, "row": row, "place": [number, place]}

    def _begin(self) -> None:
        """Note how far this loader is ahead of Lightning's count, at the first batch of a pass."""
        progress = self._progress()
        if not self._pass["begun"] and progress is not None:
            self._pass["ahead"] = self._pass["first"] - progress.ready
        self._pass["begun"] = True

    def _read_ahead(self) -> bool:
        """Tell whether Lightning reads a batch ahead, as it does unless ``limit_train_batches`` tells it the last."""
        return self._progress() is None or self._trainer.fit_loop._data_fetcher.length is None

    def _progress(self) -> Any:
        """Return Lightning's counts of batches in this epoch; None outside of a fit."""
        if self._trainer is None or getattr(self._trainer.state, "fn", None) != "fit":
            return None
        return self._trainer.fit_loop.epoch_loop.batch_progress.current


class _Gather:
    """Gathers arrays of whole numbers from all processes, over a group of its own on the processor.

    That of the gradients may be one of GPUs, which a loader must not make wait.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def __call__(self, values: np.ndarray) -> list[np.ndarray]:
        if not dist.is_available() or not dist.is_initialized():
            raise DistillationError(
                "A stream for several processes needs them to be connected (torch.distributed), as the Trainer does."
            )
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        ranks = dist.get_world_size(self._group)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks)]
        dist.all_gather(sizes, torch.tensor([len(values)]), group=self._group)
        longest = max(int(size) for size in sizes)
        own = torch.zeros(longest, dtype=torch.int64)
        own[: len(values)] = torch.from_numpy(values)
        all_values = [torch.zeros(longest, dtype=torch.int64) for _ in range(ranks)]
        dist.all_gather(all_values, own, group=self._group)
        return [padded[: int(size)].numpy() for padded, size in zip(all_values, sizes, strict=True)]


def _pack(rows: Sequence[EncodedRow]) -> np.ndarray:
    numbers = [len(rows), *(row["row"] for row in rows), *(len(row["input_ids"]) for row in rows)]
    return np.concatenate([np.array(numbers, dtype=np.int64), *(row["input_ids"].astype(np.int64) for row in rows)])


def _unpack(packed: Sequence[np.ndarray]) -> list[EncodedRow]:
    rows: list[EncodedRow] = []
    for values in packed:
        size = int(values[0])
        numbers, lengths = values[1 : size + 1], values[size + 1 : 2 * size + 1]
        ends = 2 * size + 1 + np.cumsum(lengths)
        for row, end, length in zip(numbers, ends, lengths, strict=True):
            rows.append({"input_ids": values[end - length : end], "row": int(row)})
    return rows


def _as_it_is(value: Any) -> Any:
    return value


@contextlib.contextmanager
def _forks_of_tokenizers(num_workers: int) -> Iterator[None]:
    """Keep tokenizers from warning that threads do not survive a fork: workers need none beside each other."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if num_workers and before is None:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
