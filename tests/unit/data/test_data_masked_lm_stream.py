from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from lightning_distilbert import MaskedLMData
from lightning_distilbert.data.corpus import Sequences
from lightning_distilbert.data.stream import StreamLoader
from lightning_distilbert.data.text_files import Rows, text_parts
from lightning_distilbert.errors import DistillationError

SMALL_CHUNKS = 3


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("lightning_distilbert.data.text_files.CHUNK_TEXTS", SMALL_CHUNKS)


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def parts(sizes: tuple[int, ...]) -> list[Rows]:
    """Return parts of these sizes; each text is a number of its own, spelt in digits, and then some words."""
    generator = np.random.default_rng(0)
    numbers = iter(range(100, 1000))
    return [
        Rows([{"text": f"{next(numbers)} " + "film " * generator.integers(1, 12)} for _ in range(size)])
        for size in sizes
    ]


class Group:
    """Gathers arrays from threads, as `torch.distributed` does from processes."""

    def __init__(self, ranks: int) -> None:
        self.values: list = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=250)

    def of(self, rank: int):
        def gather(values):
            self.values[rank] = values
            self.barrier.wait()
            found = list(self.values)
            self.barrier.wait()
            return found

        return gather


def collate(given):
    epoch, rows = given
    return {"epoch": epoch, "rows": [row["row"] for row in rows], "ids": [row["input_ids"].tolist() for row in rows]}


def loaders(tokenizer, corpus, ranks: int = 1, num_workers: int = 0, **options) -> list[StreamLoader]:
    group = Group(ranks)
    arguments = {"batch_size": 4, "buffer": 8, "seed": 3} | options
    sequences = Sequences(tokenizer, max_length=32, min_length=3)
    return [
        StreamLoader(
            corpus,
            sequences,
            collate,
            num_workers=num_workers,
            rank=rank,
            ranks=ranks,
            gather=group.of(rank),
            **arguments,
        )
        for rank in range(ranks)
    ]


def run(found: list[StreamLoader], batches: int | None = None) -> list[list]:
    """Iterate all ranks at once; return the batches of each."""
    results: list = [None] * len(found)

    def one(rank: int) -> None:
        try:
            results[rank] = list(islice(found[rank], batches))
        except Exception as error:  # is raised below, in the thread of the test
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def number_of(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids[1:4]).replace(" ", "").replace("##", "")


def numbers(tokenizer, batches: list) -> Counter:
    return Counter(number_of(tokenizer, ids) for batch in batches for ids in batch["ids"])


UNEVEN = [(40, 1, 7), (1, 1, 1, 50), (13,), (2, 2), (16, 16), (5, 0, 30, 4, 9)]


@pytest.mark.parametrize("sizes", UNEVEN)
@pytest.mark.parametrize(("ranks", "num_workers"), [(1, 0), (2, 0), (3, 0)])
def test_each_text_comes_once_per_epoch_and_every_rank_has_as_many_batches(tokenizer, sizes, ranks, num_workers):
    corpus = parts(sizes)
    found = loaders(tokenizer, corpus, ranks, num_workers)
    orders = []
    for epoch in range(2):
        for loader in found:
            loader.set_epoch(epoch)
        results = run(found)
        assert len({len(batches) for batches in results}) == 1
        together = sum((numbers(tokenizer, batches) for batches in results), Counter())
        assert together == Counter(str(number) for number in range(100, 100 + sum(sizes)))
        assert {batch["epoch"] for batches in results for batch in batches} == {epoch}
        assert len({row for batches in results for batch in batches for row in batch["rows"]}) == sum(sizes)
        assert all(0 < len(batch["rows"]) <= 4 for batches in results for batch in batches)
        orders.append([batch["ids"] for batches in results for batch in batches])
    assert orders[0] != orders[1] or sum(sizes) < 5  # a few rows may come in the same order twice


@pytest.mark.parametrize("sizes", [(40, 1, 7), (13,)])
def test_two_ranks_of_two_workers_see_each_text_once_and_what_no_workers_see(tokenizer, sizes):
    results = run(loaders(tokenizer, parts(sizes), ranks=2, num_workers=2))
    together = sum((numbers(tokenizer, batches) for batches in results), Counter())
    assert together == Counter(str(number) for number in range(100, 100 + sum(sizes)))
    assert results == run(loaders(tokenizer, parts(sizes), ranks=2, num_workers=0))


def test_the_number_of_workers_changes_nothing(tokenizer):
    (alone,) = run(loaders(tokenizer, parts((40, 3, 7))))
    for num_workers in (1, 2):
        assert run(loaders(tokenizer, parts((40, 3, 7)), num_workers=num_workers)) == [alone]


@pytest.mark.parametrize("shards", [1, 2, 4, 5])
def test_shards_of_a_streamed_data_set(tokenizer, shards: int):
    datasets = pytest.importorskip("datasets")
    rows = [row for part in parts((50,)) for row in part.rows]
    streamed = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    for ranks, num_workers in ((2, 0), (1, 2)):
        results = run(loaders(tokenizer, text_parts(streamed), ranks, num_workers))
        together = sum((numbers(tokenizer, batches) for batches in results), Counter())
        assert together == Counter(str(number) for number in range(100, 150))
        assert len({len(batches) for batches in results}) == 1


def test_a_shuffle_without_a_seed_is_another_order_in_each_process(tokenizer):
    datasets = pytest.importorskip("datasets")
    rows = [row for part in parts((40,)) for row in part.rows]
    streamed = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4)

    def two(**options):
        # as the scripts of two processes make them
        found = [loaders(tokenizer, text_parts(streamed.shuffle(**options)), ranks=2)[rank] for rank in range(2)]
        group = Group(2)
        for rank, loader in enumerate(found):
            loader._gather = group.of(rank)
        return found

    together = sum((numbers(tokenizer, batches) for batches in run(two(seed=1))), Counter())
    assert together == Counter(str(number) for number in range(100, 140))
    with pytest.raises(DistillationError, match=r"rows would come twice and others never. Give shuffle\(seed=...\)"):
        run(two())
    # and in a process that goes on
    first, again, seeded = (
        loaders(tokenizer, text_parts(streamed.shuffle(**options)))[0] for options in ({}, {}, {"seed": 1})
    )
    with pytest.warns(UserWarning, match="The place in the training data is not restored"):
        again.load_state_dict(first.state_dict())
    run([seeded], 2)
    (same,) = loaders(tokenizer, text_parts(streamed.shuffle(seed=1)))
    same.load_state_dict(seeded.state_dict())
    assert same.state_dict() == seeded.state_dict()


def test_a_data_set_that_is_shared_out_already_is_refused():
    datasets, split = pytest.importorskip("datasets"), pytest.importorskip("datasets.distributed").split_dataset_by_node
    streamed = datasets.Dataset.from_list([{"text": "a film"}] * 4).to_iterable_dataset(num_shards=2)
    with pytest.raises(DistillationError, match=r"split_dataset_by_node.*Pass it whole"):
        text_parts(split(streamed, 0, 2))


def test_shards_that_divide_evenly_are_read_by_one_rank_alone(tokenizer):
    datasets = pytest.importorskip("datasets")
    read: list[tuple[int, str]] = []

    def rows(shard: list[int]):
        for start in shard:
            for number in range(start, start + 10):
                read.append((threading.get_ident(), str(number)))
                yield {"text": f"{number} film film"}

    streamed = datasets.IterableDataset.from_generator(rows, gen_kwargs={"shard": [100, 200, 300, 400]})
    run(loaders(tokenizer, text_parts(streamed), ranks=2))
    assert Counter(number for _, number in read).most_common(1)[0][1] == 1
    assert len({thread for thread, _ in read}) == 2


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize(("ranks", "num_workers"), [(1, 0), (2, 0)])
def test_a_pass_goes_on_where_it_was_left_and_the_next_epoch_follows(tokenizer, stop, ranks, num_workers):
    sizes = (40, 1, 7)
    whole = []
    for epoch in range(2):
        found = loaders(tokenizer, parts(sizes), ranks, num_workers)
        for loader in found:
            loader.set_epoch(epoch)
        whole.append(run(found))
    stop = min(stop, len(whole[0][0]))
    first = loaders(tokenizer, parts(sizes), ranks, num_workers)
    assert run(first, stop) == [batches[:stop] for batches in whole[0]]
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states)  # Lightning saves that of one rank alone
    again = loaders(tokenizer, parts(sizes), ranks, num_workers)
    for loader in again:
        loader.load_state_dict(states[0])
        assert loader.state_dict() == states[0]
        loader.set_epoch(0)  # as Lightning does when a fit begins
    assert run(again) == [batches[stop:] for batches in whole[0]]
    assert run(again) == whole[1]


def test_a_state_survives_another_number_of_workers(tokenizer):
    (whole,) = run(loaders(tokenizer, parts((40, 7))))
    first = loaders(tokenizer, parts((40, 7)), num_workers=2)
    run(first, 5)
    (again,) = loaders(tokenizer, parts((40, 7)), num_workers=0)
    again.load_state_dict(first[0].state_dict())
    assert run([again]) == [whole[5:]]


def test_texts_before_the_place_are_not_tokenised_again(tokenizer, monkeypatch):
    seen: list[str] = []
    call = Sequences.__call__
    monkeypatch.setattr(Sequences, "__call__", lambda self, texts: seen.extend(texts) or call(self, texts))
    first = loaders(tokenizer, parts((60,)))
    run(first, 10)
    state, all_of_them = first[0].state_dict(), len(set(seen))
    seen.clear()
    (again,) = loaders(tokenizer, parts((60,)))
    again.load_state_dict(state)
    run([again])
    # 10 of 15 batches are done: their round of 8 rows begins at row 32 or 40, and chunks have 3 texts
    assert all_of_them >= 40
    assert len(seen) <= 60 - 32 + SMALL_CHUNKS


@pytest.mark.parametrize("option", [{"batch_size": 2}, {"seed": 4}, {"buffer": 12}])
def test_the_state_of_other_data_is_refused_with_a_warning(tokenizer, option):
    (first,) = loaders(tokenizer, parts((20,)))
    run([first], 2)
    for other in (loaders(tokenizer, parts((20,)), **option)[0], loaders(tokenizer, parts((21,)))[0]):
        with pytest.warns(UserWarning, match="The place in the training data is not restored"):
            other.load_state_dict(first.state_dict())
        assert sum(numbers(tokenizer, run([other])[0]).values()) in (20, 21)


def test_another_way_to_read_a_file_is_other_data(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("a film\n" * 20)
    lines, blocks = (
        loaders(tokenizer, text_parts(tmp_path / "a.txt", separator=separator))[0]
        for separator in ("line", "blank_line")
    )
    with pytest.warns(UserWarning, match="The place in the training data is not restored"):
        blocks.load_state_dict(lines.state_dict())


def test_a_stream_that_cannot_be_read_still_has_a_place(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\x00b")
    (loader,) = loaders(tokenizer, text_parts(tmp_path / "a.txt"))
    loader.set_epoch(3)
    with pytest.raises(DistillationError, match="there is a zero byte"):
        next(iter(loader))
    state = loader.state_dict()
    assert (state["epoch"], state["batches"], state["places"]) == (3, 0, [[0, 0]])


def test_options_change_the_batches(tokenizer):
    def batches(**options):
        return [batch["ids"] for batch in run(loaders(tokenizer, parts((64,)), **options))[0]]

    def padding(found):
        return sum(len(batch) * max(map(len, batch)) - sum(map(len, batch)) for batch in found)

    assert batches() == batches()
    assert batches(seed=4) != batches()
    assert {len(batch) for batch in batches(batch_size=2)} == {2}
    assert padding(batches(buffer=64)) < padding(batches(buffer=4))
    # from a buffer of one batch rows come in the order of the texts
    order = [number_of(tokenizer, ids) for batch in batches(buffer=4)[:-1] for ids in batch]
    assert [sorted(order[i : i + 4]) for i in range(0, 60, 4)] == [
        [str(100 + i + k) for k in range(4)] for i in range(0, 60, 4)
    ]


def test_fewer_sequences_than_processes_are_refused(tokenizer):
    with pytest.raises(DistillationError, match="The corpus has 2 sequences, which cannot be spread over 3 processes"):
        run(loaders(tokenizer, parts((2,)), ranks=3))
    with pytest.raises(DistillationError, match="The corpus has 0 sequences"):
        run(loaders(tokenizer, parts((0,))))


@pytest.mark.parametrize(("smoothing", "sample"), [(0.0, 0), (0.7, 256)])
def test_no_more_is_read_ahead_than_a_round_of_rows(tokenizer, smoothing: float, sample: int):
    """One round and a row for each rank; besides, for the frequencies, 32 chunks of 3 texts. Shards are read by 256."""
    datasets = pytest.importorskip("datasets")
    read: list[int] = []

    def rows():
        for number in range(4000):
            read.append(number)
            yield {"text": f"{number} film film"}

    source = {"train": datasets.IterableDataset.from_generator(rows)}
    options = {"buffer": 512, "batch_size": 64, "min_length": 3, "smoothing": smoothing}
    loader = iter(MaskedLMData(source, streaming=True, tokenizer=tokenizer, **options).train_dataloader())
    next(loader)
    assert len(read) == sample + 768  # 512 + 1 rows, by 256
    for _ in range(7):
        next(loader)
    assert len(read) == sample + 768
    next(loader)
    assert len(read) == sample + 1280  # one round more, of 1,024 + 1 rows


PROCESS = """
import json, sys
import numpy as np, torch.distributed as dist
from transformers import AutoTokenizer
from lightning_distilbert.data import text_files
from lightning_distilbert.data.corpus import Sequences
from lightning_distilbert.data.stream import StreamLoader
text_files.CHUNK_TEXTS = 3
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
rows = [{"text": f"{100 + n} film " + "film " * (n % 7)} for n in range(41)]
loader = StreamLoader(
    [text_files.Rows(rows)], Sequences(tokenizer, 32, 3), lambda given: [row["row"] for row in given[1]], 4, 8,
    rank=rank, ranks=2, num_workers=2,
)
print(json.dumps(list(loader)))
dist.destroy_process_group()
"""


def test_two_processes_share_out_a_stream(tmp_path, tokenizer_dir):
    root = Path(__file__).resolve().parents[3]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path), str(tokenizer_dir)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    results = [json.loads(process.communicate(timeout=280)[0].splitlines()[-1]) for process in processes]
    assert len(results[0]) == len(results[1])
    rows = [row for batches in results for batch in batches for row in batch]
    assert len(rows) == len(set(rows)) == 41


def test_a_stream_for_several_processes_needs_them_connected(tokenizer):
    loader = StreamLoader(parts((9,)), Sequences(tokenizer, 32, 3), collate, 4, ranks=2)
    with pytest.raises(DistillationError, match="needs them to be connected"):
        next(iter(loader))
