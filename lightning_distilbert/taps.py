"""Taps: forward hooks that keep one record of signals per forward of a model."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightning_distilbert.architectures import TEACHER_INPUTS, TENSOR_INPUTS, backbone, encoder_of, layers_of
from lightning_distilbert.attention import (
    ATTENTION_SIGNALS,
    PROJECTED,
    AttentionLayer,
    AttentionScores,
    attention_layers,
    split_heads,
)
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import LateLogits, pool
from lightning_distilbert.outputs import find_embedding, find_logits, find_spans, span_classes
from lightning_distilbert.signals import SIGNAL_NAMES, Signals
from lightning_distilbert.vocabulary import projection_of

Paths = str | Mapping[str, str]
ENCODER_SIGNALS = ("hidden_states", "embedding", *ATTENTION_SIGNALS)  # those that a model without a head gives too


@dataclass
class Record:
    """One forward of the tapped model.

    Attributes:
        inputs: The arguments that the model was called with, by name.
        signals: What it exposed.
        batch: The batch of the step.
    """

    inputs: dict[str, Any]
    signals: Signals
    hidden: dict[int, Tensor] = field(default_factory=dict, repr=False)
    projected: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict), repr=False)
    rotations: dict[int, Any] = field(default_factory=dict, repr=False)
    has_graph: bool = False
    batch: Any = field(default=None, repr=False)


class Taps:
    """Watches a model for the time of a ``with`` block and keeps one `Record` per forward, in order.

    The hooks exist only inside the block. So a deep copy, a pickled module or an interrupted run never carries them,
    and the forwards that activation checkpointing repeats in backward leave no second record.

    Args:
        root: The module under which the paths are resolved.
        paths: Where the signals come from. One path (``""`` is the root itself) if one module gives all of them, or a
            mapping from signal name to path where backbone and head are apart:
            ``{"hidden_states": "encoder", "logits": "classifier"}``. The module that gives the hidden states or the
            embedding is then the one whose forward opens a record.
        requires: The signals to capture, of `signals.SIGNAL_NAMES`. Attention scores are not kept: they are computed
            from queries and keys when a layer is asked for.
        pooling: How ``embedding`` is pooled from the last hidden state, ``"mean"`` over real tokens or ``"cls"``.
        batch: The batch of this step. What stands in it beside a forward's ``input_ids`` completes that record's
            inputs: a DistilBERT student takes no ``token_type_ids``, its BERT teacher needs them.
        positions: Where a token-level head is evaluated, boolean, of shape ``(batch, sequence)``; None is everywhere.
            The logits in the records are those at these positions, whether the model evaluated its head there only
            (`architectures.logits_at`) or everywhere.

    Raises:
        DistillationError: If a path leads nowhere, or a signal is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> with Taps(model, "0", {"logits"}) as taps:
        ...     _ = model(torch.zeros(3, 4))
        >>> taps.records[0].signals.logits.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        root: nn.Module,
        paths: Paths,
        requires: Collection[str],
        pooling: str = "mean",
        batch: Any = None,
        positions: Tensor | None = None,
    ) -> None:
        self.requires = frozenset(requires)
        self.pooling = pooling
        self.batch = batch
        self.positions = positions
        self.records: list[Record] = []
        self._open: list[Record] = []
        self._handles: list[RemovableHandle] = []
        if unknown := self.requires - set(SIGNAL_NAMES):
            raise DistillationError(f"Unknown signals {sorted(unknown)}: known are {list(SIGNAL_NAMES)}.")
        self.sources = resolve_paths(root, paths, self.requires)
        self._late: LateLogits | None = None  # of the forward at hand
        self.anchor = next(self.sources[name] for name in (*ENCODER_SIGNALS, "logits") if name in self.sources)

    def __enter__(self) -> Taps:
        """Register the hooks, all or none."""
        self.records.clear()
        try:
            self._register()
        except BaseException:
            self._remove()
            raise
        return self

    def _register(self) -> None:
        keep = self._handles.append
        keep(self.anchor.register_forward_pre_hook(self._before_anchor, with_kwargs=True))
        if {"hidden_states", "embedding"} & self.requires:
            source = self.sources.get("hidden_states", self.anchor)
            if "hidden_states" in self.requires or isinstance(source, PreTrainedModel):
                layers = layers_of(source)
                for index, layer in enumerate(layers):
                    keep(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
                keep(layers[-1].register_forward_hook(self._after_last(len(layers))))
                # what the whole encoder returns is the last hidden state where a norm follows the last layer
                keep(backbone(source).register_forward_hook(self._after_last(len(layers))))
        attention = next((self.sources[name] for name in ATTENTION_SIGNALS if name in self.requires), None)
        if attention is not None:
            scores = "attention_scores" in self.requires
            for index, attended in enumerate(attention_layers(attention, scores)):
                self._tap_attention(index, attended, scores)
        for name in ("logits", "embedding"):
            source = self.sources.get(name, self.anchor)
            if name in self.requires and source is not self.anchor:
                keep(source.register_forward_hook(self._after_other(name)))
        head = None if self.positions is None else self.sources.get("logits")
        if head is not None and (projection := projection_of(head)) is not None:
            keep(projection.register_forward_pre_hook(self._before_projection))
        keep(self.anchor.register_forward_hook(self._after_anchor))

    def _tap_attention(self, index: int, layer: AttentionLayer, scores: bool) -> None:
        for names, projection in layer.named():
            if self._projected() & set(names):
                hook = self._after_projection(index, names, layer.num_heads)
                self._handles.append(projection.register_forward_hook(hook))
        if scores and layer.rotary:
            self._handles.append(
                layer.module.register_forward_pre_hook(self._before_attention(index), with_kwargs=True)
            )

    def _projected(self) -> frozenset[str]:
        """The projections that are needed: scores are made of queries and keys."""
        scores = {"queries", "keys"} if "attention_scores" in self.requires else set()
        return self.requires & set(PROJECTED) | scores

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks; the records stay."""
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._open.clear()

    def _before_anchor(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = completed(named_arguments(module, args, kwargs), self.batch)
        self._open.clear()  # of a forward that failed, if the caller went on
        head = self.sources.get("logits")
        translates = getattr(getattr(head, "config", None), "is_encoder_decoder", False)
        ids = inputs.get("decoder_input_ids" if translates else "input_ids") if head is not None else None
        if self.positions is not None and isinstance(ids, Tensor) and ids.shape != self.positions.shape:
            raise DistillationError(
                f"The positions of the logits have the shape {tuple(self.positions.shape)}, and the student ran on "
                f"input_ids of shape {tuple(ids.shape)}: Task.positions() has to speak of the same batch."
            )
        signals = Signals(mask=position_mask(inputs), positions=self.positions)
        self._open.append(Record(inputs, signals, has_graph=torch.is_grad_enabled(), batch=self.batch))

    def _before_layer(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._open:
                self._open[-1].hidden[index] = args[0] if args else _hidden_in(module, kwargs)

        return hook

    def _after_last(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._open:
                return
            hidden = getattr(output, "last_hidden_state", output)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            if isinstance(hidden, Tensor) and hidden.dim() == 3:
                self._open[-1].hidden[index] = hidden

        return hook

    def _after_projection(self, index: int, names: tuple[str, ...], num_heads: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._open:
                return
            record = self._open[-1]
            if record.has_graph and not torch.is_grad_enabled():
                raise DistillationError(
                    f"The {names[0]} of the student have no graph, so that objectives on them would teach nothing: "
                    "reentrant activation checkpointing hides what happens within a layer. Use "
                    "gradient_checkpointing_enable({'use_reentrant': False})."
                )
            for name, part in zip(names, split_heads(output, num_heads, len(names)), strict=True):
                # the first call is the one on the text: DeBERTa-v2 sends positions through the same projections after
                record.projected[name].setdefault(index, part)

        return hook

    def _before_attention(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._open:
                self._open[-1].rotations[index] = named_arguments(module, args, kwargs)["position_embeddings"]

        return hook

    def _before_projection(self, module: nn.Linear, args: tuple[Any, ...]) -> None:
        hidden = args[0]
        if self.positions is not None and hidden.shape[:-1] == self.positions.shape:
            hidden = hidden[self.positions]  # a head of this layer alone, which is narrowed after this
        self._late = LateLogits(hidden, module.weight, module.bias)

    def _after_other(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # a head runs inside the anchor while its record is open, or later: then the first forward still without one
            waiting = (record for record in self.records if not record.signals.has(name))
            record = self._open[-1] if self._open else next(waiting, None)
            if record is not None:
                if name == "logits":
                    self._read_logits(module, output, record)
                else:
                    record.signals.embedding = find_embedding(output)

        return hook

    def _after_anchor(self, module: nn.Module, args: Any, output: Any) -> None:
        record = self._open.pop()
        signals, layers = record.signals, record.hidden
        if "hidden_states" in self.requires:
            signals.hidden_states = tuple(layers[index] for index in sorted(layers))
        self._attention(record)
        if "logits" in self.requires and self.sources["logits"] is module:
            self._read_logits(module, output, record)
        if "embedding" in self.requires and self.sources["embedding"] is module:
            signals.embedding = (
                pool(layers[max(layers)], signals.mask, self.pooling) if layers else find_embedding(output)
            )
        self.records.append(record)

    def _attention(self, record: Record) -> None:
        if missing := self._projected() - record.projected.keys():
            raise DistillationError(
                f"The projections of the {' and '.join(sorted(missing))} did not run in a forward of the model: what "
                "torch.compile made of it runs without hooks. Distil the plain module."
            )
        projected = {name: tuple(layers[i] for i in sorted(layers)) for name, layers in record.projected.items()}
        for name in self.requires & set(PROJECTED):
            setattr(record.signals, name, projected[name])
        if "attention_scores" in self.requires:
            rotations = [record.rotations[index] for index in sorted(record.rotations)] or None
            record.signals.attention_scores = AttentionScores(projected["queries"], projected["keys"], rotations)

    def _read_logits(self, module: nn.Module, output: Any, record: Record) -> None:
        late, self._late = self._late, None
        logits = self._logits(module, output, record)
        if late is not None and late.hidden.dim() == logits.dim() == 2 and len(late.hidden) != len(logits):
            record.signals.late_logits = late  # the model computed some of these rows only
        else:
            record.signals.logits = logits

    def _logits(self, module: nn.Module, output: Any, record: Record) -> Tensor:
        if (ends := find_spans(module, output)) is not None:
            record.signals.classes = span_classes(ends[0], record.inputs)
            return torch.cat(ends)
        logits = find_logits(output)
        if self.positions is None or logits.dim() == 2:
            return logits
        if logits.shape[:2] != self.positions.shape:
            raise DistillationError(
                f"The positions of the logits have the shape {tuple(self.positions.shape)}, and the logits "
                f"{tuple(logits.shape)}: they must be those of one batch."
            )
        return logits[self.positions]


def _hidden_in(block: nn.Module, kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a block is called with, by whatever name it takes them."""
    for value in (kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise DistillationError(
        f"A block of the model, {type(block).__name__}, was called with {list(kwargs)} and no tensor among them, so "
        "that its hidden states are not known. Give it the hidden states as its first argument."
    )


def find_student(root: nn.Module) -> str:
    """Return the path of the one transformers model in a module.

    Args:
        root: A LightningModule, say.

    Returns:
        The path of its only outermost transformers model, ``""`` if it is one itself.

    Raises:
        DistillationError: If there is none, or more than one.
    """
    found: list[str] = []
    for path, module in root.named_modules():
        inside = any(outer == "" or path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, PreTrainedModel) and not inside:
            found.append(path)
    if len(found) == 1:
        return found[0]
    raise DistillationError(
        f"Which module of {type(root).__name__} is the student? It holds {len(found)} transformers models"
        + (f", at {found}" if found else "")
        + f". Name the path, as in student='model'; its children are {[name for name, _ in root.named_children()]}. If "
        "it is built in configure_model() or setup(), build it in __init__ instead."
    )


def resolve_paths(root: nn.Module, paths: Paths, requires: frozenset[str]) -> dict[str, nn.Module]:
    """Find the module that gives each required signal.

    Args:
        root: The module to look in.
        paths: One path, or a mapping from signal to path.
        requires: The signals that are needed.

    Returns:
        A mapping from signal name to module. Of a model that translates, all but the logits come from its encoder.

    Raises:
        DistillationError: If a path is missing or does not exist.

    Example:
        >>> resolve_paths(nn.Sequential(nn.ReLU()), {"logits": "0"}, frozenset({"logits"}))
        {'logits': ReLU()}
    """
    if isinstance(paths, str):
        paths = dict.fromkeys(sorted(requires) or ["logits"], paths)
    elif "hidden_states" in paths:  # what gives these gives what its attention computes
        paths = {**dict.fromkeys(sorted(requires & set(ATTENTION_SIGNALS)), paths["hidden_states"]), **paths}
    if missing := requires - set(paths):
        raise DistillationError(
            f"The objectives need {sorted(requires)}, and no path is given for {sorted(missing)}. "
            f"Add to the mapping {dict(paths)} where each comes from, such as {{'logits': 'classifier'}}."
        )
    found: dict[str, nn.Module] = {}
    for name, path in paths.items():
        try:
            found[name] = root.get_submodule(path)
        except AttributeError as error:
            children = [child for child, _ in root.named_children()]
            raise DistillationError(
                f"There is no module at the path {path!r} (for {name}) under {type(root).__name__}, whose children are "
                f"{children}. If the student is built in configure_model() or setup(), build it in __init__ instead."
            ) from error
    return {name: encoder_of(module) if name in ENCODER_SIGNALS else module for name, module in found.items()}


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments of a forward their names.

    Example:
        >>> named_arguments(nn.Linear(1, 1), (3,), {})
        {'input': 3}
    """
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    inputs: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            inputs[name] = value
    if len(args) == 1 and isinstance(args[0], Mapping):  # a module that takes the batch as one dict
        inputs.update(args[0])
    return inputs


def completed(inputs: dict[str, Any], batch: Any) -> dict[str, Any]:
    """Add what stands beside these inputs in the batch, which may be nested: masks and token types.

    Args:
        inputs: The named arguments of a forward.
        batch: The batch that they were taken from, or anything else.

    Returns:
        The inputs with the missing `TENSOR_INPUTS` of the mapping that holds the same ``input_ids``, with the
        `TEACHER_INPUTS` in it (the same texts as a teacher's own tokenizer encodes them), and with its ``span_mask``.

    Example:
        >>> ids = torch.tensor([[1, 2]])
        >>> batch = {"query": {"input_ids": ids, "token_type_ids": torch.tensor([[0, 1]])}}
        >>> completed({"input_ids": ids}, batch)["token_type_ids"]
        tensor([[0, 1]])
    """
    siblings = _mapping_with(inputs.get("input_ids"), batch)
    if siblings is None and isinstance(batch, Mapping) and "input_ids" not in inputs and "inputs_embeds" not in inputs:
        # a student that takes its tokens under another name, or a head alone
        nested = [item for item in batch.values() if isinstance(item, Mapping) and "input_ids" in item]
        siblings = nested[0] if "input_ids" not in batch and len(nested) == 1 else batch
    names = (*TENSOR_INPUTS, *TEACHER_INPUTS, "span_mask") if siblings is not None else ()
    added = {name: siblings[name] for name in names if siblings is not None and siblings.get(name) is not None}
    return {**added, **{name: value for name, value in inputs.items() if value is not None}}


def _mapping_with(input_ids: Any, batch: Any) -> Mapping[str, Any] | None:
    if isinstance(batch, Mapping) and isinstance(input_ids, Tensor):
        ids = batch.get("input_ids")
        if ids is input_ids or (
            isinstance(ids, Tensor) and ids.shape == input_ids.shape and torch.equal(ids, input_ids)
        ):
            return batch
    nested = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((found for item in nested if (found := _mapping_with(input_ids, item)) is not None), None)


def position_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return the attention mask as booleans of shape ``(batch, sequence)``, or None if there is none.

    Raises:
        DistillationError: If the mask has another number of axes.
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise DistillationError(
            f"The attention_mask has the shape {tuple(getattr(mask, 'shape', ()))}; distillation needs the "
            "(batch, sequence) mask to tell padding from text. Give that one to the student."
        )
    return mask.bool()
