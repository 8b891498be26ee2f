"""Rows of two processes, and the gradient that comes back to each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel

from lightning_distilbert import Retrieval
from lightning_distilbert.gathering import gather_rows, processes, sum_over_processes

SIZES = (3, 2)  # queries of each process
EACH = 3  # documents of each query


def make_model() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def make_texts(rows: int, seed: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 40, (rows, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def take(texts: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in texts.items()}


def whole_batch() -> dict[str, object]:
    """Five queries; texts occur twice, a negative is missing, and the last query has no token."""
    queries, documents = make_texts(sum(SIZES), 1), make_texts(EACH * sum(SIZES), 2)
    numbers = torch.arange(EACH * sum(SIZES))
    numbers[6], numbers[13] = numbers[4], numbers[0]
    for texts, row in ((queries, 4), (documents, 11)):
        texts["attention_mask"][row] = 0
    relevant = torch.tensor([[0, -2], [1, 9], [2, -2], [3, 14], [4, -2]])
    return {"query": queries, "document": documents, "document_index": numbers, "relevant_index": relevant}


def part_of(batch: dict, rank: int) -> dict[str, object]:
    first = sum(SIZES[:rank])
    rows = list(range(first, first + SIZES[rank]))
    documents = [place * sum(SIZES) + row for place in range(EACH) for row in rows]
    return {
        "query": take(batch["query"], rows),
        "document": take(batch["document"], documents),
        "document_index": batch["document_index"][documents],
        "relevant_index": batch["relevant_index"][rows],
    }


class Step(torch.nn.Module):
    """The loss as a forward, so that DDP averages the gradient."""

    def __init__(self, task: Retrieval, model: BertModel) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: dict) -> Tensor:
        return self.task.loss(self.task.run(self.model, batch), batch)


def main(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {"processes": processes(), "sum": sum_over_processes(torch.tensor(float(rank + 1)))}
    rows = torch.full((SIZES[rank], 2), float(rank + 1), requires_grad=True)
    (gathered, numbers), real, start = gather_rows([rows, torch.arange(SIZES[rank])])
    (gathered.square().sum() * (rank + 1)).backward()
    results |= {"rows": gathered.detach(), "numbers": numbers, "real": real, "start": start, "grad": rows.grad}
    for name in ("gather", "apart"):
        step = DistributedDataParallel(Step(Retrieval(gather=name == "gather"), make_model()))
        loss = step(part_of(whole_batch(), rank))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in step.parameters()])
        results[name] = {"loss": loss.detach(), "gradient": gradient}
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What both processes saw."""
    folder = tmp_path_factory.mktemp("gather")
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
    runs = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_rows_of_different_numbers_are_gathered_in_the_order_of_the_processes(results):
    for rank, found in enumerate(results):
        assert (found["processes"], found["sum"].item(), found["start"]) == (2, 3.0, 3 * rank)
        assert found["real"].tolist() == [True] * 5 + [False]
        assert found["rows"][found["real"]].tolist() == [[1.0, 1.0]] * 3 + [[2.0, 2.0]] * 2
        assert found["numbers"][found["real"]].tolist() == [0, 1, 2, 0, 1]


def test_gradients_of_all_processes_come_back(results):
    # the derivative of the square, weighed 1 by the first process and 2 by the second
    for rank, found in enumerate(results):
        assert found["grad"].tolist() == [[2.0 * (rank + 1) * 3] * 2] * SIZES[rank]


def test_loss_and_gradient_over_two_processes_are_those_of_one_with_the_whole_batch(results):
    model = make_model()
    loss = Step(Retrieval(), model)(whole_batch())
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    losses = torch.stack([found["gather"]["loss"] for found in results])
    torch.testing.assert_close(losses.mean(), loss.detach())
    for found in results:
        torch.testing.assert_close(found["gather"]["gradient"], gradient, rtol=1e-4, atol=1e-6)


def test_without_gathering_the_loss_is_another(results):
    loss = Step(Retrieval(), make_model())(whole_batch())
    losses = torch.stack([found["apart"]["loss"] for found in results])
    assert losses.mean().item() < loss.item() - 1e-3
    assert not torch.allclose(results[0]["apart"]["gradient"], results[0]["gather"]["gradient"], atol=1e-4)


def test_one_process_gathers_its_own_rows():
    loss = Step(Retrieval(gather=True), make_model())(whole_batch())
    torch.testing.assert_close(loss, Step(Retrieval(), make_model())(whole_batch()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
