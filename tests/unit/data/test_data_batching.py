import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DistributedSampler

import lightning_distilbert
from lightning_distilbert.data.batching import FixedBatches, LengthGroupedSampler, padding_share
from lightning_distilbert.errors import DistillationError


def lengths_of(rows: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(3, 0.7, rows).astype(int) + 2


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("rows", "batch_size"), [(101, 8), (3, 1), (7, 1), (64, 8), (5, 100), (1000, 4)])
def test_every_row_once_and_as_many_batches_on_each_rank(rows, batch_size, ranks, shuffle):
    lengths = lengths_of(rows)
    samplers = [
        LengthGroupedSampler(lengths, batch_size, shuffle, num_replicas=ranks, rank=rank, window=5)
        for rank in range(ranks)
    ]
    per_rank = [list(sampler) for sampler in samplers]
    batches = [batch for part in per_rank for batch in part]
    assert sorted(index for batch in batches for index in batch) == list(range(rows))
    assert {len(part) for part in per_rank} == {len(samplers[0])}
    sizes = [len(batch) for batch in batches]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 1
    # with one row a batch, rows that do not divide among the ranks have to double up
    assert max(sizes) <= (batch_size if batch_size > 1 or rows % ranks == 0 else 2)
    assert all(isinstance(index, int) for batch in batches for index in batch)


def test_epochs_and_seeds_change_the_order_and_repeat():
    def draw(seed, epoch):
        sampler = LengthGroupedSampler(lengths_of(200), 8, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1)
    assert draw(0, 0) != draw(1, 0)
    # not only the order of batches changes, but also who is in a batch together
    assert {frozenset(batch) for batch in draw(0, 0)} != {frozenset(batch) for batch in draw(0, 1)}


def test_the_first_batches_can_be_left_out_once():
    sampler = LengthGroupedSampler(lengths_of(50), 8)
    whole = list(sampler)
    sampler.skip = 3
    assert list(sampler) == whole[3:]
    assert list(sampler) == whole
    assert len(sampler) == len(whole)


def test_the_signature_tells_other_batches_apart():
    def signature(rows=20, batch_size=4, **options):
        return LengthGroupedSampler(lengths_of(rows), batch_size, **options).signature()

    changed = [{"rows": 21}, {"batch_size": 5}, {"seed": 1}, {"window": 3}, {"shuffle": False}, {"num_replicas": 2}]
    assert signature() == signature()
    for options in changed:
        assert signature(**options) != signature()
    assert LengthGroupedSampler(lengths_of(20) + 1, 4).signature()["rows"] == 20
    assert LengthGroupedSampler(lengths_of(20) + 1, 4).signature() != signature()
    assert json.loads(json.dumps(signature())) == signature()


def test_padding_is_far_below_that_of_random_batches():
    lengths = lengths_of(4000)
    order = np.random.default_rng(1).permutation(4000)
    random_share = padding_share(lengths, order.reshape(-1, 16))
    grouped = padding_share(lengths, list(LengthGroupedSampler(lengths, 16)))
    narrow = padding_share(lengths, list(LengthGroupedSampler(lengths, 16, window=2)))
    assert random_share > 0.4
    assert grouped < 0.1 < narrow < random_share


def test_a_longest_batch_comes_first_and_ranks_work_on_like_lengths():
    lengths = lengths_of(2000)
    parts = [list(LengthGroupedSampler(lengths, 8, num_replicas=2, rank=rank)) for rank in range(2)]
    tokens = [[len(batch) * lengths[batch].max() for batch in part] for part in parts]
    assert max(tokens[0][0], tokens[1][0]) == max(map(max, tokens))
    difference = np.abs(np.subtract(*tokens)).mean()
    shifted = np.abs(np.subtract(tokens[0], np.roll(tokens[1], 1))).mean()
    assert difference < shifted / 5


def test_unshuffled_is_sorted_and_the_same_each_epoch():
    lengths = lengths_of(50)
    sampler = LengthGroupedSampler(lengths, 8, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == first
    longest = [lengths[index] for batch in first for index in batch]
    assert longest == sorted(lengths, reverse=True)


def test_bad_options():
    with pytest.raises(DistillationError, match="2 rows cannot be spread over 3 processes"):
        LengthGroupedSampler([1, 2], 1, num_replicas=3, rank=0)
    with pytest.raises(DistillationError, match="batch_size=0"):
        LengthGroupedSampler([1, 2], 0)
    with pytest.raises(DistillationError, match="window=0"):
        LengthGroupedSampler([1, 2], 1, window=0)


def test_fixed_batches_give_whole_batches():
    data = FixedBatches(type("Rows", (), {"__getitem__": lambda self, index: index})(), [[1, 2], [0]])
    assert [data[0], data[1], len(data)] == [[1, 2], [0], 2]


SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from lightning_distilbert._compat import LightningModule, Trainer
from lightning_distilbert.data import TextClassificationData

class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
    def _record(self, what, batch):
        shape = list(batch["input_ids"].shape)
        lengths = batch["attention_mask"].sum(1).tolist()
        self.seen.append([what, self.current_epoch, batch["labels"].tolist(), lengths, shape])
    def training_step(self, batch):
        self._record("train", batch)
        return self.layer(torch.ones(1, 1)).sum()
    def validation_step(self, batch):
        self._record("val", batch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

folder, tokenizer = sys.argv[1:]
rows = [{"text": " ".join(["good"] * (1 + i * 7 % 19)), "label": i} for i in range(45)]
module = Recorder()
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
data = TextClassificationData({"train": rows, "dev": rows[:31]}, tokenizer=tokenizer, batch_size=4)
trainer.fit(module, data)
json.dump(module.seen, open(f"{folder}/{trainer.global_rank}.json", "w"))
"""


def test_lightning_keeps_lengths_and_rows_on_two_processes(tmp_path, tokenizer_dir):
    assert issubclass(LengthGroupedSampler, DistributedSampler)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(lightning_distilbert.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, script, tmp_path, tokenizer_dir], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    orders = []
    for what, epoch, rows in (("train", 0, 45), ("train", 1, 45), ("val", 0, 31), ("val", 1, 31)):
        ours = [[record for record in part if record[:2] == [what, epoch]] for part in seen]
        assert len(ours[0]) == len(ours[1])
        assert sorted(label for part in ours for record in part for label in record[2]) == list(range(rows))
        records = [record for part in ours for record in part]
        share = 1 - sum(sum(record[3]) for record in records) / sum(record[4][0] * record[4][1] for record in records)
        lengths = np.array([length for record in records for length in record[3]])
        order = np.random.default_rng(0).permutation(rows)
        assert share < padding_share(lengths, np.array_split(order, len(records))) / 2
        orders.append([record[2] for record in ours[0]])
    assert orders[0] != orders[1]
    assert orders[2] == orders[3]
