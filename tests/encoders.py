"""Tiny encoders of every architecture that a student can be cut out of, and what a cut one has to compute."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from lightning_distilbert.architectures import backbone, layers_of

SIZES = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
# ten times the usual spread, so that layers differ by more than any tolerance
COMMON = {"vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.2, **SIZES}
MODERN = {**COMMON, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL = {"vocab_size": 60, "max_position_embeddings": 40, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32}
DEBERTA = {**COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, COMMON),
    "roberta": (transformers.RobertaConfig, COMMON),
    "electra": (transformers.ElectraConfig, {**COMMON, "embedding_size": 8}),
    "mpnet": (transformers.MPNetConfig, COMMON),
    "deberta-v2": (transformers.DebertaV2Config, {**DEBERTA, "conv_kernel_size": 3}),
    "modernbert": (transformers.ModernBertConfig, MODERN),
    "distilbert": (transformers.DistilBertConfig, {**DISTIL, "initializer_range": 0.2}),
}


def model_of(name: str, auto_class: Any = AutoModel, **changes: Any) -> PreTrainedModel:
    """Return a random encoder with a head or without."""
    kind, values = CONFIGS[name]
    model = auto_class.from_config(kind(**(values | changes)))
    # norms and biases start as ones and zeros, which would hide one that was not copied
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval()


def batch_of(vocab_size: int = 60, length: int = 9, pad: int = 0) -> dict[str, Tensor]:
    """Return two texts, the second of which is padded on the right."""
    ids = torch.randint(3, vocab_size, (2, length))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[1, 6:] = pad
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def states(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the hidden states of the real tokens in eval mode."""
    found = backbone(model).eval()(**inputs, output_hidden_states=True).hidden_states
    return [state[inputs["attention_mask"].bool()] for state in found]


class Sliced:
    """The reference: a model with the other layers taken out of its list, for the time of a ``with`` block."""

    def __init__(self, model: nn.Module, chosen: list[int]) -> None:
        self.whole = layers_of(model)
        self.parent = next(m for m in model.modules() if any(child is self.whole for child in m.children()))
        self.name = next(name for name, child in self.parent.named_children() if child is self.whole)
        self.chosen = chosen

    def __enter__(self) -> None:
        setattr(self.parent, self.name, nn.ModuleList(self.whole[i] for i in self.chosen))

    def __exit__(self, *_: object) -> None:
        setattr(self.parent, self.name, self.whole)


def assert_sliced(student: nn.Module, teacher: nn.Module, chosen: list[int], inputs: dict[str, Tensor]) -> None:
    """Check that a student has the hidden states of its teacher with these layers alone."""
    with Sliced(teacher, chosen):
        wanted = states(teacher, inputs)
    found = states(student, inputs)
    assert len(found) == len(wanted) == len(chosen) + 1
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
