"""`DistillationLoss`: distillation for a LightningModule that knows nothing of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_distilbert import doctor
from lightning_distilbert._compat import CallbackBase
from lightning_distilbert.architectures import TEACHER_INPUTS, TENSOR_INPUTS, has_labels
from lightning_distilbert.engine import Distiller
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import Objective, resolve_objectives
from lightning_distilbert.resume import ResumePoint
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.taps import find_student
from lightning_distilbert.tasks.base import Task
from lightning_distilbert.teacher import Teacher

PROJECTIONS = "_distillation_projections"
RESUME_KEY = "lightning_distilbert_resume"
# what a batch without any label may hold
TEXT_INPUTS = frozenset({*TENSOR_INPUTS, *TEACHER_INPUTS, "span_mask", "first_subword"})


class DistillationLoss(CallbackBase):
    """Adds distillation terms to the training loss of any LightningModule, unchanged.

    It wraps the module's ``training_step`` for the time of a fit: forward hooks record what the student computes
    there, the teacher runs on the same inputs, and the terms are added to the loss that the step returns. So
    accumulation, mixed precision, DDP, clipping and logging see one loss. (``on_before_backward`` would be the wrong
    place: Lightning has divided and scaled the loss by then, and DDP has searched the graph.)

    Where a batch holds texts and nothing else, and the step has run the student and returns no loss, the terms stand
    alone. Where a batch has ``first_subword``, as those of `TokenClassificationData`, logits are compared at the first
    sub-words alone. A module whose ``task`` is a `Task`, such as a `DistillationModule` without a teacher, says itself
    where.

    Checkpoints load without this package: projections are kept in the callback's own state. Training itself resumes
    with the callback only, since the optimizer's state includes the projections.

    Note:
        Put it before ``WeightAveraging`` in the list of callbacks, so that its projections exist when weights are
        first copied; the other order is refused.

    Args:
        teacher: A folder, a hub name, a `Teacher` or a finished model. A model is frozen in place.
        student: The path of the student in the LightningModule, such as ``"model"``; or a mapping from signal to path
            where encoder and head are apart: ``{"hidden_states": "encoder", "logits": "classifier"}``. None takes the
            one transformers model in it.
        objectives: A preset's name, one objective, or several, which are copied: `distiller.objectives` are the copies.
        task_weight: The weight of the loss that the module itself returns. None takes the preset's, or 1.
        pooling: How the student's sentence embedding is pooled, for objectives that need one.

    Raises:
        DistillationError: If the objectives or, at the start of a fit, the models do not fit.

    Example:
        >>> from lightning_distilbert import DistillationLoss, SoftTargets
        >>> callback = DistillationLoss(nn.Linear(4, 2), student="model", objectives=[SoftTargets(temperature=2.0)])
        >>> callback.distiller.names
        ['soft_targets']
    """

    def __init__(
        self,
        # not str first: jsonargparse writes a union by its first type that fits, and a Teacher would become text
        teacher: Teacher | str | Path | nn.Module,
        student: str | dict[str, str] | None = None,
        objectives: str | Objective | Sequence[Objective] = "logits",
        task_weight: float | Schedule | None = None,
        pooling: Literal["mean", "cls"] = "mean",
    ) -> None:
        preset = resolve_objectives(objectives)
        teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        weight = preset.task_weight if task_weight is None else task_weight
        self.student = student
        self.distiller = Distiller(teacher, preset.objectives, student or "", pooling, weight)
        self._wrapped: Any = None  # the module whose training_step is wrapped
        self._replaced: Any = None  # what stood in its instance dictionary before
        self._hooks: list[RemovableHandle] = []
        self._later: dict[str, Tensor] = {}  # weights of projections that no fit has asked for yet
        self._resume = ResumePoint()

    # -- mounting ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the pair, add projections to the module, and wrap its ``training_step``.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            stage: The Trainer's stage; nothing happens outside ``"fit"``.
        """
        if stage != "fit":
            return
        if isinstance(getattr(pl_module, "distiller", None), Distiller):
            raise DistillationError(
                "DistillationModule and DistillationLoss are both in this Trainer: the terms would count twice. "
                "Remove the callback, or build the module without a teacher."
            )
        if not pl_module.automatic_optimization:
            raise DistillationError(
                f"{type(pl_module).__name__} optimizes manually, so that no loss is returned to which a term could be "
                "added. Use automatic optimization, or subclass DistillationModule and call distillation_loss()."
            )
        self._build(trainer, pl_module)
        self._wrap(pl_module)

    def _build(self, trainer: Any, pl_module: Any) -> None:
        teacher = self.distiller.teacher
        doctor.check_not_student(pl_module, teacher.source)
        if self.student is None:
            self.distiller.student = find_student(pl_module)
        tokenizer = tokenizer_of(pl_module) or tokenizer_of(trainer.datamodule)
        config = getattr(teacher.model, "config", None)
        student_config = getattr(self.distiller.watch(pl_module).anchor, "config", None)
        self.distiller.mismatch = None
        if tokenizer is not None and teacher.tokenizer is not None:
            self.distiller.compare_vocabularies(doctor.check_vocabularies, tokenizer, teacher.tokenizer)
        if self.distiller.mismatch is None:
            self.distiller.compare_vocabularies(doctor.check_vocabulary_sizes, student_config, config)
        self.distiller.build(pl_module)
        self.distiller.load_projections(self._later)
        self._later = {}
        self.distiller.label_order = None
        if "logits" in self.distiller.requires and has_labels(teacher.model):
            data_labels = getattr(getattr(trainer.datamodule, "label_set", None), "names", None)
            named = [names for names in (doctor.label_names(student_config), data_labels) if names]
            orders = [doctor.check_labels(names, doctor.label_names(config), teacher.name) for names in named]
            if orders and orders[0] != orders[-1]:
                raise DistillationError(
                    f"The student's config has the labels {named[0]} and the data {list(named[-1])}, in another order: "
                    "what the student learns from the one it unlearns from the other. Name them in one order."
                )
            self.distiller.label_order = orders[0] if orders else None
        objectives = self.distiller.objectives  # buffers have to move along as well
        if any(True for _ in itertools.chain(objectives.parameters(), objectives.buffers())):
            earlier = itertools.takewhile(lambda callback: callback is not self, trainer.callbacks)
            doctor.check_averaging(earlier, "put DistillationLoss first in the list of callbacks")
            setattr(pl_module, PROJECTIONS, objectives)
            self._hooks = [
                pl_module.register_state_dict_post_hook(strip_projections),
                pl_module.register_load_state_dict_post_hook(forgive_projections),
            ]

    def _wrap(self, pl_module: Any) -> None:
        step = pl_module.training_step
        distiller = self.distiller

        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            if not pl_module.trainer.training:  # a validation_step that calls the training step
                return step(*args, **kwargs)
            distiller.set_progress(pl_module.trainer)
            batch = args[0] if args else next(iter(kwargs.values()), None)
            with distiller.watch(pl_module, batch, self._positions(pl_module, batch)) as taps:
                output = step(*args, **kwargs)
            task_loss = output.get("loss") if isinstance(output, Mapping) else output
            if task_loss is None:
                unlabelled = isinstance(batch, Mapping) and batch.keys() <= TEXT_INPUTS
                if not (unlabelled and taps.records):  # the module skips this step
                    return output
            elif not isinstance(task_loss, Tensor):
                raise DistillationError(
                    f"training_step returned {type(output).__name__} with no loss tensor; return the loss, or a dict "
                    "with the key 'loss'."
                )
            loss, logs = distiller.total(task_loss, taps.records)
            pl_module.log_dict(logs, batch_size=1)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        self._wrapped, self._replaced = pl_module, vars(pl_module).get("training_step")
        # a plain function on the instance: Lightning reads its __code__, and torch.compile does the same
        pl_module.__dict__["training_step"] = training_step

    def _positions(self, pl_module: Any, batch: Any) -> Tensor | None:
        """Return where logits are compared: where the module's task says, or where words begin if the batch says so."""
        if not isinstance(batch, Mapping) or "logits" not in self.distiller.requires:
            return None
        task = getattr(pl_module, "task", None)
        if isinstance(task, Task):  # it may run its head there alone
            return task.positions(batch)
        found = batch.get("first_subword")  # the rest of a word is no target
        return found if isinstance(found, Tensor) else None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Move the teacher, and wake a student that `from_pretrained` left in eval mode.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
        """
        teacher = self.distiller.teacher
        teacher.prepare(pl_module.device, trainer.precision_plugin)
        doctor.check_optimizers(self.distiller.objectives.parameters(), trainer.optimizers, teacher.model)
        student = self.distiller.watch(pl_module).anchor
        # a student partly in eval mode is the user's own choice
        if not any(module.training for module in student.modules()):
            student.train()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Give back the random states of a checkpoint.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
        """
        self._resume.start(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note that gradients change from here on.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            loss: The loss.
        """
        self._resume.begin_backward(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the random states, from which training may have to resume.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            outputs: What the training step returned.
            batch: The batch.
            batch_idx: Its index.
        """
        self._resume.note(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the random states as training left them.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
        """
        self._resume.after_validation(trainer)

    def _unmount(self) -> None:
        module = self._wrapped
        if module is None:
            return
        module.__dict__.pop("training_step", None)
        if self._replaced is not None:
            module.__dict__["training_step"] = self._replaced
        if hasattr(module, PROJECTIONS):
            delattr(module, PROJECTIONS)
        while self._hooks:
            self._hooks.pop().remove()
        self._wrapped = self._replaced = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module back as it was.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            stage: The Trainer's stage.
        """
        self._unmount()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the module back as it was: after an error Lightning calls no ``teardown``.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            exception: What happened.
        """
        self._unmount()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the projections out of the weights that a strategy gathered in its own way, and add where training is.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            checkpoint: The checkpoint to be saved.
        """
        strip_projections(pl_module, checkpoint["state_dict"], "", None)
        checkpoint[RESUME_KEY] = self._resume.state(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training starts.

        Args:
            trainer: The Trainer.
            pl_module: The LightningModule.
            checkpoint: The checkpoint being loaded.

        Raises:
            DistillationError: If a fit with projections is to resume one that had no such callback.
        """
        resumes = trainer.state.fn == "fit" and "optimizer_states" in checkpoint
        projected = any(True for _ in self.distiller.objectives.parameters())
        if resumes and projected and self.state_key not in checkpoint.get("callbacks", {}):
            raise DistillationError(
                "The checkpoint is one of a run without DistillationLoss: its optimizer knows nothing of the "
                "projections that these objectives brought. Begin a new fit from the weights alone "
                "(load_from_checkpoint, without ckpt_path), or take objectives without projections."
            )
        self._resume.load(trainer, checkpoint.get(RESUME_KEY))

    def state_dict(self) -> dict[str, Any]:
        """Return the projections, for resuming."""
        kept = self._later or self.distiller.objectives.state_dict()
        return {"objectives": {key: value.detach().cpu() for key, value in kept.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the projections; outside of a fit they are kept for the next one, which makes them.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            DistillationError: If they are of other objectives.
        """
        if self._wrapped is None:  # evaluation loads a checkpoint too
            self._later = dict(state_dict["objectives"])
            return
        try:
            self.distiller.objectives.load_state_dict(state_dict["objectives"])
        except RuntimeError as error:
            raise DistillationError(
                "The checkpoint was made with other objectives, whose projections do not fit. Resume with the same "
                "ones, or begin a new fit from the weights alone (load_from_checkpoint, without ckpt_path). "
                f"{' '.join(str(error).split())}"
            ) from error


def tokenizer_of(owner: Any) -> Any:
    """Return the tokenizer that a module or data module holds, or None.

    Example:
        >>> tokenizer_of(nn.Linear(1, 1)) is None
        True
    """
    with contextlib.suppress(DistillationError):  # a DistillationModule that has none says so
        tokenizer = getattr(owner, "tokenizer", None)
        return tokenizer if hasattr(tokenizer, "get_vocab") else None
    return None


def strip_projections(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Take the projections out of a module's weights, so that a checkpoint loads without this package.

    Lightning calls no callback when it saves weights alone, and ``WeightAveraging`` saves the weights of its own copy:
    so it is a hook of the module, which its copies inherit.

    Args:
        module: The LightningModule.
        state_dict: Its weights; changed in place.
        prefix: The module's name in what is being saved.
        local_metadata: Not used.
    """
    if prefix in ("", "module."):  # FSDP still needs what stands under its own prefix
        for key in [key for key in state_dict if key.startswith(f"{prefix}{PROJECTIONS}.")]:
            del state_dict[key]


def forgive_projections(module: nn.Module, incompatible_keys: Any) -> None:
    """Drop the projections from the missing keys of a checkpoint: the callback restores them itself.

    Args:
        module: The LightningModule.
        incompatible_keys: What `nn.Module.load_state_dict` found missing or unexpected; changed in place.
    """
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if f"{PROJECTIONS}." not in key]
