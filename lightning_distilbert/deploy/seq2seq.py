"""What the two graphs of a student that translates compute, and what they compute together."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from lightning_distilbert.architectures import unwrap
from lightning_distilbert.deploy.runtime.search import Search
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import short
from lightning_distilbert.target_tokenizer import decoder_config

AUTO_CLASS = "AutoModelForSeq2SeqLM"
ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"


class Seq2SeqGraph(nn.Module):
    """A student that translates, as it is exported: a copy on the CPU in float32, in eval mode.

    Called as a whole it gives the logits of the tokens of a translation that is known, as in training. What is written
    are its two parts: `encoder` runs once for a text, `decoder` once for each token of the translation.

    Args:
        task: The task.
        model: The student: an encoder with a decoder of transformers.

    Attributes:
        inputs: The names of the inputs, int64 of shape ``(batch, sequence)`` and ``(batch, target)``.
        outputs: The names of the outputs and their axes.
        readers: The config of what reads the inputs, by what their names begin with.
        settings: How translations are searched for, as generation_config.json says it.

    Raises:
        DistillationError: If the model has no decoder that remembers what it has read, or its own rules for writing are
            more than the runtime applies.
    """

    inputs = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")

    def __init__(self, task: Any, model: nn.Module) -> None:
        super().__init__()
        model = unwrap(model)
        self.settings = _settings(task, model)
        Search.read(self.settings, type(model).__name__)  # a rule that the runtime does not apply is refused here
        own: Any = copy.deepcopy(model).cpu().float()
        own.set_attn_implementation("eager")
        self.model: Any = own
        config = own.config
        self.readers = {"": getattr(config, "encoder", config), "decoder_": decoder_config(config)}
        self.outputs = {"logits": ["batch", "target", "vocabulary"]}
        self.eval()
        self.encoder = EncoderGraph(own, self.readers[""])
        self.decoder = DecoderGraph(self.encoder, decoder_config(config))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Run the student on a text and its translation.

        Args:
            input_ids: The text, of shape ``(batch, sequence)``.
            attention_mask: 1 at its tokens, 0 in the padding.
            decoder_input_ids: What the decoder reads, of shape ``(batch, target)``.
            decoder_attention_mask: 1 at its tokens. Padding is behind them, where no token sees it: it changes nothing.
        """
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        )
        return (found.logits,)


class EncoderGraph(nn.Module):
    """A text to what all layers of the decoder look up in it: keys and values of their cross-attention.

    They are the same for each token of a translation, and so are computed here, once.

    Args:
        model: The model, in eval mode.
        config: The config of its encoder.

    Attributes:
        inputs: The names of the inputs.
        outputs: The names of the outputs, a key and a value for each layer of the decoder, and their axes.
    """

    inputs = ("input_ids", "attention_mask")

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        self.model, self.config = model, config
        try:
            with torch.no_grad():
                found = self(**self.example())
        except Exception as error:  # of many kinds
            raise DistillationError(
                f"{type(model).__name__} cannot be exported: its decoder does not keep keys and values of its "
                f"attention in a cache that is known ({short(error)}). EncoderDecoderModel and Marian can."
            ) from error
        names = [f"cross_{kind}_{layer}" for layer in range(len(found) // 2) for kind in ("key", "value")]
        self.outputs: dict[str, list[Any]] = {
            name: ["batch", tensor.shape[1], "sequence", tensor.shape[3]]
            for name, tensor in zip(names, found, strict=True)
        }
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Run the encoder.

        Args:
            input_ids: Of shape ``(batch, sequence)``.
            attention_mask: 1 at real tokens, 0 in the padding.

        Returns:
            The `outputs`, of shape ``(batch, heads, sequence, width)``.
        """
        # the decoder reads a token for its cache alone; what else comes of it is no part of the graph
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=torch.zeros_like(input_ids[:, :1]),
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            use_cache=True,
        )
        return _flat(found.past_key_values.cross_attention_cache)

    def example(self) -> dict[str, Tensor]:
        """Return a batch for tracing, as `Graph.example` does."""
        ids = torch.arange(2, 79).remainder(int(self.config.vocab_size)).view(7, 11)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        return {"input_ids": ids, "attention_mask": mask}

    def signature(self) -> dict[str, tuple[str, list[Any]]]:
        """Return the type and the axes of each input."""
        return {name: ("int64", ["batch", "sequence"]) for name in self.inputs}

    def axes(self) -> dict[str, Any]:
        """Return the axes of each input that are of any size, as torch's exporter takes them."""
        return {name: {0: "batch", 1: "sequence"} for name in self.inputs}


class DecoderGraph(nn.Module):
    """The next tokens of translations to logits, given what the encoder found and what the decoder remembers.

    Args:
        encoder: The other graph.
        config: The decoder's config.

    Attributes:
        inputs: The names of the inputs: ``input_ids``, the tokens that were not read yet; ``encoder_attention_mask``;
            the outputs of the encoder; and of each layer ``past_key`` and ``past_value``, of the tokens read before,
            which may be none.
        outputs: The names of the outputs and their axes: ``logits``, and ``present_key`` and ``present_value``, which
            are the past of the next call.
    """

    def __init__(self, encoder: EncoderGraph, config: Any) -> None:
        super().__init__()
        self.model, self.config = encoder.model, config
        self._cross = encoder.outputs
        with torch.no_grad():
            example = encoder.example()
            self._mask, self._found = example["attention_mask"], list(encoder(**example))
            self._past = [tensor[:, :, :5] for tensor in self._remembered()]
        past = [name.replace("cross", "past") for name in self._cross]
        self.inputs = ("input_ids", "encoder_attention_mask", *self._cross, *past)
        self.outputs: dict[str, list[Any]] = {"logits": ["batch", "target", "vocabulary"]} | {
            name.replace("past", "present"): ["batch", tensor.shape[1], "past + target", tensor.shape[3]]
            for name, tensor in zip(past, self._past, strict=True)
        }
        self.eval()

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, cross: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the decoder.

        Args:
            input_ids: Of shape ``(batch, target)``.
            encoder_attention_mask: Of the text, of shape ``(batch, sequence)``.
            cross: Keys and values of the text, by turns.
            past: Keys and values of the tokens read before, by turns, of shape ``(batch, heads, past, width)``.

        Returns:
            The `outputs`, in their order.
        """
        cache = EncoderDecoderCache(_cache(past), DynamicCache())
        cache.cross_attention_cache = _cache(cross)
        cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
        # of the encoder's states nothing is read but how many there are: their keys and values are known
        width = self.model.get_encoder().config.hidden_size
        states = encoder_attention_mask.unsqueeze(-1).expand(-1, -1, width).to(past[0].dtype)
        found = self.model(
            encoder_outputs=(states,),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits, *_flat(found.past_key_values.self_attention_cache))

    def example(self) -> dict[str, Any]:
        """Return a batch for tracing, its axes of sizes that hardly anything else has."""
        return {
            "input_ids": torch.arange(2, 23).remainder(int(self.config.vocab_size)).view(7, 3),
            "encoder_attention_mask": self._mask,
            "cross": self._found,
            "past": self._past,
        }

    def signature(self) -> dict[str, tuple[str, list[Any]]]:
        """Return the type and the axes of each input."""
        found: dict[str, tuple[str, list[Any]]] = {
            "input_ids": ("int64", ["batch", "target"]),
            "encoder_attention_mask": ("int64", ["batch", "sequence"]),
        }
        found |= {name: ("float32", axes) for name, axes in self._cross.items()}
        for name, axes in [*self.outputs.items()][1:]:
            found[name.replace("present", "past")] = ("float32", [axes[0], axes[1], "past", axes[3]])
        return found

    def axes(self) -> dict[str, Any]:
        """Return the axes of each input that are of any size, as torch's exporter takes them."""
        return {
            "input_ids": {0: "batch", 1: "target"},
            "encoder_attention_mask": {0: "batch", 1: "sequence"},
            "cross": [{0: "batch", 2: "sequence"} for _ in self._cross],
            "past": [{0: "batch", 2: "past"} for _ in self._past],
        }

    def _remembered(self) -> tuple[Tensor, ...]:
        """Return keys and values of some tokens: their shapes are not those of the cross-attention in each model."""
        mask = self._mask
        found = self.model(
            input_ids=torch.zeros_like(mask),
            attention_mask=mask,
            decoder_input_ids=torch.zeros_like(mask[:, :5]),
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            use_cache=True,
        )
        return _flat(found.past_key_values.self_attention_cache)


def _cache(tensors: list[Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(len(tensors) // 2):
        cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)
    return cache


def _flat(cache: Any) -> tuple[Tensor, ...]:
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def _settings(task: Any, model: Any) -> dict[str, Any]:
    if not hasattr(task, "search_settings") or not hasattr(model, "generation_config"):
        raise DistillationError(
            f"A {type(model).__name__} with the task {type(task).__name__} cannot be exported: how it searches for its "
            "translations is not known. Students of Translation can."
        )
    settings: dict[str, Any] = task.search_settings(model).to_diff_dict()
    return settings
