"""What the graph of each task computes: token ids to logits, or to a finished sentence vector."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_distilbert.architectures import accepted_inputs, unwrap
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.tasks.base import call_model

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# which input tells the real places along an axis: of a text, or of its translation
MASKS = {"sequence": "attention_mask", "target": "decoder_attention_mask"}
# the outputs by the head's auto class, each with its axes
OUTPUTS: dict[str, dict[str, list[str]]] = {
    "AutoModelForSequenceClassification": {"logits": ["batch", "labels"]},
    "AutoModelForTokenClassification": {"logits": ["batch", "sequence", "labels"]},
    "AutoModelForQuestionAnswering": {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]},
    "AutoModelForMaskedLM": {"logits": ["batch", "sequence", "vocabulary"]},
    # not "embedding", as in Retrieval: torch's exporter calls the result of a table look-up so
    "AutoModel": {"sentence_embedding": ["batch", "width"]},
}


class Graph(nn.Module):
    """A student as it is exported: a copy on the CPU in float32, in eval mode, that takes and returns tensors.

    The sentence vector of retrieval is pooled, and normalised where the task says so, inside the graph. Attention is
    computed eagerly: its graph needs no newer operator set than the other parts, runs as fast as one with fused
    attention, and is that of architectures that have no other.

    Args:
        task: The task.
        model: The student.
        names: The inputs that its tokenizer gives.

    Attributes:
        inputs: The names of the inputs, int64 of shape ``(batch, sequence)`` each.
        outputs: The names of the outputs and their axes.
        readers: The config of what reads the inputs, by what their names begin with.

    Raises:
        DistillationError: If the task's outputs are not known, or the model takes no attention mask.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from lightning_distilbert import Retrieval
        >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> graph = Graph(Retrieval(), BertModel(BertConfig(**sizes)), ("input_ids", "attention_mask"))
        >>> graph.outputs, graph(**graph.example())[0].shape
        ({'sentence_embedding': ['batch', 'width']}, torch.Size([7, 4]))
    """

    settings: dict[str, Any] | None = None  # of a search: there is none

    def __init__(self, task: Any, model: nn.Module, names: Any) -> None:
        super().__init__()
        model = unwrap(model)
        retrieval = task.auto_class == "AutoModel"
        if task.auto_class not in OUTPUTS or (retrieval and not hasattr(task, "embed")):
            known = "text and token classification, question answering, retrieval, reranking and masked language models"
            raise DistillationError(
                f"{type(task).__name__} cannot be exported: what the graph of its {task.auto_class} gives is not "
                f"known. Those of {known} can."
            )
        accepted = accepted_inputs(model)
        self.inputs = tuple(name for name in INPUTS if name in accepted and (name in names or name != INPUTS[2]))
        if self.inputs[:2] != INPUTS[:2]:
            raise DistillationError(
                f"{type(model).__name__} takes {', '.join(sorted(accepted))}: to be exported it has to take "
                "input_ids and attention_mask."
            )
        self.outputs = OUTPUTS[task.auto_class]
        self.task = task
        own: Any = copy.deepcopy(model).cpu().float()
        if hasattr(own, "set_attn_implementation"):
            own.set_attn_implementation("eager")
        self.model: Any = own
        self.readers = {"": getattr(own, "config", None)}
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Run the student.

        Args:
            input_ids: Of shape ``(batch, sequence)``.
            attention_mask: 1 at real tokens, 0 in the padding.
            token_type_ids: For a student that has them; None is 0 everywhere.

        Returns:
            The `outputs`, in their order.
        """
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        if "sentence_embedding" in self.outputs:
            return (self.task.embed(self.model, batch),)
        found = call_model(self.model, batch)
        return tuple(found[name] for name in self.outputs)

    def example(self) -> dict[str, Tensor]:
        """Return a batch of unequal lengths for tracing, its axes of sizes that hardly anything else has.

        An exporter may take an axis that is as large as the number of labels for that number.
        """
        ids = torch.arange(2, 79).remainder(int(getattr(self.model.config, "vocab_size", 79))).view(7, 11)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return {name: values[name] for name in self.inputs}

    def signature(self) -> dict[str, tuple[str, list[str | int]]]:
        """Return the type and the axes of each input."""
        return {name: ("int64", ["batch", "sequence"]) for name in self.inputs}

    def axes(self) -> dict[str, Any]:
        """Return the axes of each input that are of any size, as torch's exporter takes them."""
        return {name: {0: "batch", 1: "sequence"} for name in self.inputs}


def mask_of(name: str) -> str:
    """Return the name of the input that tells where another one is padded.

    Example:
        >>> mask_of("token_type_ids"), mask_of("decoder_input_ids")
        ('attention_mask', 'decoder_attention_mask')
    """
    return MASKS["target" if name.startswith("decoder_") else "sequence"]
