"""The frozen teacher."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from lightning_distilbert.architectures import TEACHER_INPUTS, accepted_inputs, backbone, encoder_of, logits_at
from lightning_distilbert.checkpoints import CheckedLoading
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import load_tokenizer
from lightning_distilbert.loading import load_model
from lightning_distilbert.sentence_folder import changed_texts, declared_pooling, sentence_modules
from lightning_distilbert.signals import Signals
from lightning_distilbert.spec import Spec
from lightning_distilbert.taps import Paths, Taps
from lightning_distilbert.teacher_cache import TeacherCache
from lightning_distilbert.vocabulary import projected_at

# to what a Trainer of "true" precision casts weights
CASTS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


class Teacher(Spec):
    """A frozen model that tells the student what to imitate.

    It is not an `nn.Module`, and is held beside the LightningModule and not in it: so it is in no checkpoint, no
    optimizer, no DDP bucket and no copy that weight averaging makes, and ``module.train()`` does not reach it. It is
    in eval mode at every forward.

    Args:
        source: A folder that transformers can load, a hub name, or a finished module. A module is frozen in place;
            where its weights are needed in another type, a copy of it is cast. Of a `DistillationModule` its student
            is the teacher.
        pooling: How to pool its sentence embedding. None reads ``1_Pooling/config.json`` of a sentence-transformers
            model, in a folder or on the hub, and takes the mean without one.
        dtype: A torch type name for its weights, such as ``"bfloat16"``. None keeps float32 and runs in whatever
            precision the Trainer computes in. A float16 of its own is kept out of mixed precision.
        paths: Where a finished module gives its signals, as in `Taps`.
        cache: A folder for what it says of each text, so that it reads each once; see `TeacherCache`. None keeps none.
        trust_remote_code: Whether to run code that comes with the weights.

    Raises:
        DistillationError: If the source cannot be loaded, or has no trained weights for its head.

    Example:
        >>> teacher = Teacher(nn.Linear(4, 2))
        >>> signals = teacher({"input": torch.zeros(3, 4)}, {"logits"})
        >>> signals.logits.requires_grad
        False
    """

    def __init__(
        self,
        source: str | Path | nn.Module,
        pooling: Literal["mean", "cls"] | None = None,
        dtype: str | None = None,
        paths: Paths = "",
        cache: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if isinstance(source, CheckedLoading):  # a DistillationModule takes a batch and no tensors
            task, source = cast(Any, source).task, cast(Any, source).student
            pooling = pooling or task.pooling
        self.source = source if isinstance(source, nn.Module) else str(source)
        self.paths = paths
        self.trust_remote_code = trust_remote_code
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise DistillationError(f"dtype={dtype!r} is no torch type: write its name, such as 'bfloat16'.")
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self.cache = None if cache is None else TeacherCache(cache)
        self._pooling = pooling
        self._model: nn.Module | None = None
        self._precision: str | None = None  # of the Trainer that the weights were last prepared for

    @property
    def name(self) -> str:
        """What to call the teacher in messages and model cards."""
        return self.source if isinstance(self.source, str) else type(self.source).__name__

    @functools.cached_property
    def pooling(self) -> str:
        """How its sentence embedding is pooled."""
        if self._pooling is not None:
            return self._pooling
        pooling = declared_pooling(self.source) or "mean"
        if isinstance(self.source, str) and (change := changed_texts(self.source)) is not None:
            raise DistillationError(
                f"{change}, and a teacher is given texts as they are: its sentence vectors would be others than those "
                "of sentence-transformers. Change the texts of your data yourself, and say so: "
                f"Teacher({self.source!r}, pooling={pooling!r})."
            )
        return pooling

    @property
    def model(self) -> nn.Module:
        """The frozen model, loaded when it is first asked for."""
        if self._model is None:
            given = self.source if isinstance(self.source, nn.Module) else None
            model = load_trained(str(self.source), self.trust_remote_code) if given is None else given
            model = model.requires_grad_(False).eval()
            if given is not None and _casts(model, self.dtype):
                model = copy.deepcopy(model)  # the user's own keeps its weights
            self._model = model if self.dtype is None else model.to(self.dtype)
        return self._model

    @functools.cached_property
    def config(self) -> Any:
        """Its transformers config, read without its weights; None if it has none or cannot be read."""
        if isinstance(self.source, nn.Module):
            return getattr(self.source, "config", None)
        return load_config(self.source, self.trust_remote_code)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Its own tokenizer, loaded when it is first asked for; None for a finished module, which comes without."""
        return load_tokenizer(self.source, self.trust_remote_code) if isinstance(self.source, str) else None

    @property
    def _mixed(self) -> bool:
        """Whether its linear layers are cast for autocast; those of a finished module are the user's."""
        return self._precision == "bf16-mixed" and isinstance(self.source, str)

    def prepare(self, device: torch.device, precision: Any = None) -> None:
        """Move the teacher to where the student is.

        Args:
            device: The device.
            precision: The Trainer's precision plugin. Under "true" half precision it casts the teacher as it casts the
                student; under mixed precision autocast does.
        """
        given = isinstance(self.source, nn.Module)
        if given and precision is not None:
            self._model = None  # it may have been trained further since the last fit
        if precision is not None and self.dtype is None:
            named: Any = getattr(precision, "precision", None)
            if self._precision not in (None, named):
                self._model = None  # a fit in another precision needs the weights as they were
            if given and _casts(self.model, CASTS.get(named)):
                self._model = copy.deepcopy(self.model)  # the user's own keeps its weights
            self._model, self._precision = precision.convert_module(self.model), named
            if self._mixed:
                cast_linear(self.model, torch.bfloat16)
        self._model = self.model.to(device)

    def __call__(
        self,
        inputs: Mapping[str, Any],
        requires: Collection[str],
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        late: bool = False,
    ) -> Signals:
        """Run the teacher on the student's inputs, or on its own encoding of the same texts.

        Args:
            inputs: The arguments by name; those that this architecture does not take are left out. If
                ``teacher_input_ids`` is among them, the teacher runs on what begins with ``teacher_`` and nothing else.
            requires: The signals to return.
            mask: Which positions count, if the inputs do not say.
            positions: Where a token-level head is evaluated, of shape ``(batch, sequence)``; None is everywhere.
            late: Whether logits over a vocabulary are left for later, where this model can.

        Returns:
            The signals, without a graph.
        """
        model = self.model.eval()
        if "teacher_input_ids" in inputs:  # the student's mask says nothing of these
            own = {name.removeprefix("teacher_"): inputs[name] for name in TEACHER_INPUTS if name in inputs}
            if "decoder_input_ids" in inputs:  # a translation, whose tokens are those of both
                own["decoder_input_ids"] = inputs["decoder_input_ids"]
            else:
                positions = None
            inputs, mask = own, None
        if self.cache is not None:
            if not self.cache.requires:
                self.open_cache(requires)
            requires = self.cache.requires
        if "logits" not in requires and self.paths == "" and isinstance(model, PreTrainedModel):
            model = encoder_of(backbone(model))  # a head over the vocabulary costs as much as several layers
        accepted = accepted_inputs(model)
        usable = {name: value for name, value in inputs.items() if name in accepted} or dict(inputs)
        if isinstance(model, PreTrainedModel) and not {"input_ids", "inputs_embeds"} & usable.keys():
            raise DistillationError(
                f"What the student was called with, {sorted(inputs)}, holds no input_ids for the teacher. Name the "
                "encoder beside a head: student={'hidden_states': 'encoder', 'logits': 'classifier'}."
            )
        if self.cache is not None:
            signals = self.cache(functools.partial(self._run, model, requires), usable, positions)
        else:
            signals = self._run(model, requires, usable, positions, late)
        if signals.mask is None:
            signals.mask = mask
        return signals

    def open_cache(self, requires: Collection[str], layers: Collection[int] | None = None) -> None:
        """Check, before training, that the cache is this teacher's and has what is needed, or that it can be made.

        Args:
            requires: The signals that are needed.
            layers: The hidden states that are needed; None are all.

        Raises:
            DistillationError: If not.
        """
        if self.cache is None:
            return
        given = self.source if isinstance(self.source, nn.Module) else None  # which may change between two fits
        pooling, model = self.pooling if "embedding" in requires else None, self.model if given is None else given
        self.cache.open(model, pooling, requires, layers, self.paths, self.dtype, settled=given is None)

    def _run(
        self,
        model: nn.Module,
        requires: Collection[str],
        inputs: Mapping[str, Any],
        positions: torch.Tensor | None,
        late: bool = False,
    ) -> Signals:
        pooling = self.pooling if "embedding" in requires else "mean"
        taps = Taps(model, self.paths, requires, pooling, positions=positions)
        device = next((p.device.type for p in model.parameters()), "cpu")
        mixed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._mixed:  # cast linear layers need autocast, also where the teacher is called outside of a training step
            mixed = torch.autocast(device, torch.bfloat16)
        elif self.dtype == torch.float16:  # a CPU refuses float16 norms of what autocast made bfloat16
            mixed = torch.autocast(device, enabled=False)
        rows: list[int] | None = [] if late and positions is not None else None
        with torch.no_grad(), mixed, logits_at(model, positions), taps, projected_at(model, rows):
            model(**inputs)
        return taps.records[0].signals

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Return the teacher itself: a copy of the student shares it."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was loaded out when a launcher pickles the module: each process loads it itself."""
        kept = {name: value for name, value in self.__dict__.items() if name != "tokenizer"}
        return {**kept, "_model": None, "_precision": None}

    def __repr__(self) -> str:
        """Name the source."""
        return f"Teacher({self.name!r})"


def _casts(model: nn.Module, dtype: torch.dtype | None) -> bool:
    """Tell whether a type, if there is one to cast to, is another than that of a model's weights."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtype is not None and not types <= {dtype}


def cast_linear(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a frozen model's linear layers once, as autocast would cast them anew at every forward.

    The outputs under autocast stay the same to the bit, in less time.

    Args:
        model: The model; changed in place. A weight that an embedding shares (a head over the vocabulary is tied to
            the token embeddings) is copied, and the embedding keeps its own: neither will be trained.
        dtype: The type that autocast computes in.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))


def load_trained(source: str, trust_remote_code: bool = False) -> nn.Module:
    """Load a model with the architecture that its own config names, and refuse one with untrained parts.

    A sentence-transformers model with a pooling is an encoder, even if its config still names the head that it was
    pretrained with, as all-mpnet-base-v2's does.

    Args:
        source: A local folder or a hub name.
        trust_remote_code: Whether to run code that comes with the weights.

    Returns:
        The model, in eval mode.

    Raises:
        DistillationError: If the folder or its weights are missing, or parts of the model are not in the weights.
    """
    config = load_config(source, trust_remote_code)
    named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    bare = not hasattr(transformers, named) or "Pooling" in sentence_modules(source)  # or code that comes along
    architecture = "AutoModel" if bare else named
    return load_model(source, architecture, trust_remote_code, whole=True).eval()


def load_config(source: str, trust_remote_code: bool = False) -> Any:
    """Return a model's config without its weights, or None if it cannot be read: loading the weights says why."""
    try:
        return transformers.AutoConfig.from_pretrained(os.path.expanduser(source), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None
