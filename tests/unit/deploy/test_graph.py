from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertModel, RobertaConfig, RobertaModel

from lightning_distilbert import MaskedLM, QuestionAnswering, Retrieval
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.tasks.base import Task

SIZES = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.parametrize("options", [{"pooling": "mean"}, {"pooling": "cls"}, {"normalize": False}])
def test_sentence_vectors_are_finished_inside(options):
    task, model = Retrieval(**options), BertModel(BertConfig(**SIZES)).eval()
    graph = Graph(task, model, NAMES)
    batch = graph.example()
    (found,) = graph(**batch)
    torch.testing.assert_close(found, task.embed(model, batch))
    assert (found.norm(dim=-1) - 1).abs().max().lt(1e-5) == task.normalize


def test_the_student_is_left_as_it_is():
    model = BertModel(BertConfig(**SIZES)).bfloat16().train()
    graph = Graph(Retrieval(), model, NAMES)
    assert model.training
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "sdpa"
    assert not graph.training
    assert graph.model.dtype == torch.float32
    assert graph.model.config._attn_implementation == "eager"


def test_inputs_are_those_of_model_and_tokenizer():
    assert Graph(Retrieval(), BertModel(BertConfig(**SIZES)), NAMES).inputs == (
        "input_ids",
        "attention_mask",
        "token_type_ids",
    )
    # RoBERTa takes token types, and its tokenizer gives none
    roberta = Graph(Retrieval(), RobertaModel(RobertaConfig(**SIZES)), ["input_ids", "attention_mask"])
    assert roberta.inputs == ("input_ids", "attention_mask")


def test_token_types_count():
    graph = Graph(QuestionAnswering(), BertForQuestionAnswering(BertConfig(**SIZES, initializer_range=0.5)), NAMES)
    batch = graph.example()
    start, end = graph(**batch)
    assert list(graph.outputs) == ["start_logits", "end_logits"]
    assert start.shape == end.shape == batch["input_ids"].shape
    other, _ = graph(**batch | {"token_type_ids": torch.ones_like(batch["input_ids"])})
    assert not torch.allclose(start, other)


class Unknown(Task):
    auto_class = "AutoModelForSeq2SeqLM"


class Headless(Task):
    auto_class = "AutoModel"


@pytest.mark.parametrize("task", [Unknown(), Headless()])
def test_unknown_task_is_refused(task: Task):
    with pytest.raises(DistillationError, match=f"{type(task).__name__} cannot be exported"):
        Graph(task, BertModel(BertConfig(**SIZES)), NAMES)


def test_model_of_other_inputs_is_refused():
    class Pixels(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

    with pytest.raises(DistillationError, match="it has to take input_ids and attention_mask"):
        Graph(MaskedLM(), Pixels(), NAMES)
