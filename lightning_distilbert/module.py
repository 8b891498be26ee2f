"""`DistillationModule`: teacher, student and task as one LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from lightning_distilbert import checkpoints, doctor, evaluation, heads, provenance
from lightning_distilbert._compat import LightningModule
from lightning_distilbert.engine import Distiller
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import load_tokenizer, save_student, tokenizer_files, tokenizer_from_files
from lightning_distilbert.objectives import Objective, resolve_objectives
from lightning_distilbert.optimization import adamw_with_warmup, clip_gradients
from lightning_distilbert.parts import check_parts, labelled, plain_argument
from lightning_distilbert.precision import choose_attention
from lightning_distilbert.prediction import answer_questions
from lightning_distilbert.resume import ResumePoint
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.spec import from_config
from lightning_distilbert.student import Student
from lightning_distilbert.taps import Taps
from lightning_distilbert.tasks.base import Batch, Outputs, Task
from lightning_distilbert.teacher import Teacher

CHECKPOINT_KEY = "lightning_distilbert"


class DistillationModule(checkpoints.CheckedLoading, LightningModule):
    """Trains a student on a task with a teacher's help.

    Without a teacher it fine-tunes the student alone: that is how a teacher is made, and the baseline to compare with.

    To change a part, override it: ``training_step`` (call `watch` around the student and `distillation_loss` on what it
    recorded), ``configure_optimizers``, or the task.

    Args:
        task: What the student learns.
        teacher: A folder, a hub name, a `Teacher` or a finished model; None trains without distillation.
        student: How the student is made: a `Student`, a folder or hub name, or a finished model. None cuts half of the
            teacher's layers out of it.
        objectives: A preset's name, one objective, or several, which are copied. ``"default"`` takes the task's preset.
        task_weight: The weight of the task's own loss. None takes the preset's, or 1.
        learning_rate: The peak learning rate of AdamW.
        weight_decay: Its weight decay, on weight matrices only.
        warmup: The share of the steps over which the learning rate rises, from 0 to 1; it then falls linearly to 0.
        betas: AdamW's decay rates.
        eps: AdamW's term for numerical stability.
        tokenizer: The folder or name of the tokenizer, if it is neither the teacher's nor the student's.

    Attributes:
        thresholds: What the task chose on validation data, by name; saved with the student.
        scores: The latest metrics of each split, such as ``"val/accuracy"``; saved too.
        fits: What is known of each fit, such as data, steps and seed; saved too.

    Raises:
        DistillationError: If the parts do not fit.

    Example:
        >>> from lightning_distilbert import DistillationModule, Student, TextClassification
        >>> module = DistillationModule(
        ...     task=TextClassification(num_labels=2),
        ...     student=Student(config={"model_type": "distilbert", "dim": 32, "n_heads": 2, "n_layers": 1}),
        ... )
        >>> module.student.config.num_labels
        2
    """

    def __init__(
        self,
        task: Task,
        # not str first: jsonargparse writes a union by its first type that fits, and a Teacher would become text
        teacher: Teacher | str | Path | nn.Module | None = None,
        student: Student | str | Path | nn.Module | None = None,
        objectives: str | Objective | Sequence[Objective] = "default",
        task_weight: float | Schedule | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        tokenizer: str | Path | None = None,
    ) -> None:
        super().__init__()
        task, teacher, student, task_weight = (from_config(part) for part in (task, teacher, student, task_weight))
        check_parts(task, teacher, student, objectives)
        task = labelled(task, teacher, student)
        if not 0.0 <= warmup < 1.0:
            raise DistillationError(
                f"warmup={warmup} is the share of the steps in which the rate rises: 0 <= warmup < 1."
            )
        arguments = {
            "task": task,
            "teacher": teacher,
            "student": student,
            "objectives": objectives,
            "task_weight": task_weight,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "betas": betas,
            "eps": eps,
            "tokenizer": tokenizer,
        }
        self.save_hyperparameters({name: plain_argument(name, value) for name, value in arguments.items()})
        self.task = task
        self._tokenizer_source = tokenizer
        self._tokenizer: Any = None
        self._later: dict[str, Tensor] = {}  # weights of projections that are not built yet
        self._resume = ResumePoint()
        self._slower_attention: str | None = None  # that of the student outside of a fit, where a fit has another
        self.thresholds: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.fits: list[dict[str, Any]] = []
        self._origin: dict[str, Any] = {}  # what a saved folder says of its teacher and objectives

        teacher = teacher if isinstance(teacher, Teacher) or teacher is None else Teacher(teacher)
        student = Student(source=str(student)) if isinstance(student, (str, Path)) else student
        self.student_spec = student if isinstance(student, Student) else None
        if isinstance(student, nn.Module):
            self.student = student
        else:
            spec = self.student_spec or Student()
            source = teacher.source if teacher is not None else None
            self.student = spec.build(source, self.task.auto_class, **self.task.model_config())
        self.task.prepare_model(self.student)
        self.metrics = nn.ModuleDict({split: self.task.new_metrics() for split in ("val", "test")})

        self.distiller: Distiller | None = None
        self.objectives: nn.ModuleList = nn.ModuleList()
        self.task_weight: float | Schedule = 1.0 if task_weight is None else task_weight
        if teacher is not None:
            default = isinstance(objectives, str) and objectives == "default"
            preset = resolve_objectives(from_config(self.task.default_objectives if default else objectives))
            self.task_weight = preset.task_weight if task_weight is None else task_weight
            self.distiller = Distiller(teacher, preset.objectives, "", self.task.pooling, self.task_weight)
            self.objectives = self.distiller.objectives  # registered here, so that projections are trained and saved

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the labels in the order of the head's outputs, or None where nobody names them.

        They are the task's, else the student's, else the teacher's, which are read without loading its weights, else
        those that the data in the same Trainer brought.
        """
        number = getattr(self.task, "num_labels", None)
        if self.task.labels or number is None:
            return self.task.labels
        names = doctor.label_names(getattr(self.student, "config", None))
        if names is None and self.distiller is not None:
            names = doctor.label_names(self.distiller.teacher.config)
        if names is None:
            data = getattr(self._trainer, "datamodule", None)
            names = getattr(getattr(data, "label_set", None), "names", None)
        return tuple(names) if names and len(names) == number else None

    # -- training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Load the teacher and check the pair, before the strategy wraps the module.

        Args:
            stage: The Trainer's stage; only ``"fit"`` needs the teacher.
        """
        checkpoints.guard(self._trainer)
        DistillationModule.on_fit_end(self)  # which an interrupted fit did not reach
        for metrics in self.metrics.values():
            self.task.name_labels(metrics, self.labels)
        self.task.setup(self, stage)
        if stage != "fit":
            return
        if not self.automatic_optimization and type(self).training_step is DistillationModule.training_step:
            raise DistillationError(
                f"{type(self).__name__} sets automatic_optimization=False, and nothing would take the loss that its "
                "training_step returns. Leave it True, or override training_step and optimize there."
            )
        if self.distiller is None:
            self._name_labels()
            return
        teacher = self.distiller.teacher
        doctor.check_not_student(self.student, teacher.source)
        config = getattr(teacher.model, "config", None)
        self.distiller.mismatch = None
        if teacher.tokenizer is not None:
            self.distiller.compare_vocabularies(doctor.check_vocabularies, self.tokenizer, teacher.tokenizer)
        else:
            student_config = getattr(self.student, "config", None)
            self.distiller.compare_vocabularies(doctor.check_vocabulary_sizes, student_config, config)
        self.distiller.label_order = None
        if "logits" in self.distiller.requires:  # a teacher of another task's labels may still show its hidden states
            self.distiller.label_order = doctor.check_labels(self.labels, doctor.label_names(config), teacher.name)
        self._name_labels()
        known, trainer = len(list(self.objectives.parameters())), cast(Any, self._trainer)
        self.distiller.build(self.student)
        self.distiller.load_projections(self._later)
        self._later = {}
        if trainer is not None and len(list(self.objectives.parameters())) != known:
            doctor.check_averaging(
                trainer.callbacks, "call module.setup('fit') before trainer.fit(module), which makes them"
            )

    def check_teacher(self) -> None:
        """Refuse a teacher without the head that the objectives look at; data modules ask before they tokenise."""
        teacher = self.distiller.teacher if self.distiller is not None else None
        if self.distiller and teacher and isinstance(teacher.source, str) and "logits" in self.distiller.requires:
            doctor.check_head(teacher.config, self.task.auto_class, teacher.name)

    def _name_labels(self) -> None:
        """Write the labels into the student's config, so that they are saved with it."""
        config = getattr(self.student, "config", None)
        if self.labels and config is not None:
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {label: index for index, label in enumerate(self.labels)}

    def on_fit_start(self) -> None:
        """Move the teacher, and put the student into train mode: `from_pretrained` leaves it in eval mode."""
        self.student.train()
        if getattr(self.student_spec, "attn_implementation", None) is None:
            self._slower_attention = choose_attention(self.student, self.device, self.trainer.precision)
        if self.distiller is not None:
            self.distiller.teacher.prepare(self.device, self.trainer.precision_plugin)
            doctor.check_optimizers(self.objectives.parameters(), self.trainer.optimizers, self.distiller.teacher.model)

    def on_fit_end(self) -> None:
        """Let the student attend as before."""
        if self._slower_attention is not None:
            cast(Any, self.student).set_attn_implementation(self._slower_attention)
            self._slower_attention = None

    def on_train_start(self) -> None:
        """Give back the random states of a checkpoint, after all that draws numbers before training."""
        self._resume.start(self.trainer)
        doctor.check_validation(self.trainer)
        heads.note_training(self)
        provenance.begin(self)
        if self.trainer.ckpt_path is None:
            self.scores = {}  # those of the weights before training

    def on_before_backward(self, loss: Tensor) -> None:
        """Note that gradients change from here on.

        Args:
            loss: The loss.
        """
        self._resume.begin_backward(self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Note the random states, from which training may have to resume.

        Args:
            outputs: What the training step returned.
            batch: The batch.
            batch_idx: Its index.
        """
        self._resume.note(self.trainer)
        provenance.note(self)

    def on_validation_end(self) -> None:
        """Leave the random states as training left them."""
        self._resume.after_validation(self.trainer)

    def forward(self, batch: Batch) -> Outputs:
        """Run the student on a batch.

        Args:
            batch: Tensors under transformers' names.

        Returns:
            The task's outputs by name.
        """
        return self.task.run(self.student, batch)

    def watch(self, batch: Batch) -> Taps:
        """Return taps to put around the student's forwards of one step: ``with self.watch(batch) as taps: ...``.

        Args:
            batch: The batch of this step.
        """
        if self.distiller is None:
            raise DistillationError("There is nothing to watch: this module has no teacher.")
        self.distiller.set_progress(self.trainer)
        return self.distiller.watch(self.student, batch, self.task.positions(batch))

    def distillation_loss(self, task_loss: Tensor | None, taps: Taps) -> Tensor:
        """Add the distillation terms to a loss and log them.

        Args:
            task_loss: The task's own loss, or None.
            taps: The taps that watched the student in this step.

        Returns:
            The weighted sum, to be returned from ``training_step``.
        """
        if self.distiller is None:
            raise DistillationError("There is nothing to distil: this module has no teacher.")
        loss, logs = self.distiller.total(task_loss, taps.records)
        self.log_dict(logs, batch_size=1)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Run the student, ask the task for its loss and the engine for its terms.

        Args:
            batch: Tensors under transformers' names.
            batch_idx: The index of the batch.
        """
        if self.distiller is None:
            loss = self.task.loss(self(batch), batch)
            if loss is None:
                raise DistillationError(
                    "The batch has no labels, and without a teacher there is nothing else to learn from."
                )
        else:
            read = batch if heads.trains_head(self) else self.task.unread(batch)
            with self.watch(read) as taps:
                outputs = self(read)
            task_loss = self.task.loss(outputs, read)
            if task_loss is not None and read is batch:
                self.log("train/task_loss", task_loss.detach(), batch_size=1)
            loss = self.distillation_loss(task_loss, taps)
            if task_loss is None:  # DDP wants a gradient for a head that no objective looks at, if only zeros
                loss = loss + sum(output.flatten()[:0].sum() for output in outputs.values())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with decay on weight matrices only, and a linear warm-up and decay per step."""
        names = ("learning_rate", "weight_decay", "warmup", "betas", "eps")
        return adamw_with_warmup(self, factors=self.task.rates(self), **{name: self.hparams[name] for name in names})

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does, but for a fused optimizer under bf16-mixed too.

        Args:
            optimizer: The optimizer.
            gradient_clip_val: The Trainer's.
            gradient_clip_algorithm: The Trainer's, ``"norm"`` or ``"value"``.
        """
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch, split: str) -> None:
        outputs = self(batch)
        loss = self.task.loss(outputs, batch)
        if loss is not None:
            rows = next(iter(outputs.values())).shape[0]
            self.log(f"{split}/loss", loss, sync_dist=True, batch_size=rows, add_dataloader_idx=False)
        self.task.update_metrics(self.metrics[split], outputs, batch)

    def _log_metrics(self, split: str) -> None:
        # the metrics are the same on every process already; without the word Lightning warns that they might not be
        for name, value in evaluation.conclude(self, split).items():
            self.log(name, value, prog_bar=name == self.task.monitor, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one validation batch in, on the student alone."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the task's metrics as ``val/<name>``."""
        self._log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one test batch in, on the student alone."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the task's metrics as ``test/<name>``."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Any]:
        """Return one plain answer per row."""
        return self.task.predict(self, batch)

    def predict(self, texts: Sequence[Any], batch_size: int = 32, max_length: int | None = None) -> list[Any]:
        """Answer texts without a Trainer, on the device where the module is.

        Args:
            texts: The texts, or pairs of texts as tuples.
            batch_size: Texts in a batch; texts of similar length go together.
            max_length: Tokens kept of a text at most; None is what tokenizer and student allow.

        Returns:
            One plain answer per text, in the order of the texts, as the task decodes it.

        Raises:
            DistillationError: If something in it is no text, or texts and pairs are mixed.
        """
        return self.task.answer(self, texts, batch_size, max_length)

    def answer(
        self, question: str | Sequence[str], context: str | Sequence[str], batch_size: int = 32
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Find the answer to a question in a text; for a student of question answering.

        Args:
            question: The question, or several.
            context: The text that holds the answer, or one for each question; a single one serves all questions.
            batch_size: Windows of text in a batch.

        Returns:
            The answer as the task decodes it, or a list of one for each question.

        Raises:
            DistillationError: If the task is another, or the numbers of questions and texts differ.
        """
        return answer_questions(self, question, context, batch_size)

    # -- the student's way out -----------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that encodes for the student, and for a teacher with the same vocabulary."""
        if self._tokenizer is None:
            teacher = self.distiller.teacher if self.distiller is not None else None
            spec_source = self.student_spec.source if self.student_spec is not None else None
            teacher_source = teacher.source if teacher is not None and isinstance(teacher.source, str) else None
            source = self._tokenizer_source or spec_source or teacher_source
            if source is None:
                raise DistillationError(
                    "There is no tokenizer: neither the teacher nor the student comes from a folder or a hub name. "
                    "Pass tokenizer=... to DistillationModule."
                )
            self._tokenizer = load_tokenizer(source)
        return self._tokenizer

    @property
    def teacher_tokenizer(self) -> Any:
        """The teacher's tokenizer where it is another one than the student's, else None.

        Data modules then encode each text twice, and a batch carries ``teacher_input_ids`` beside ``input_ids``.
        """
        theirs = self.distiller.teacher.tokenizer if self.distiller is not None else None
        return None if theirs is None or theirs.get_vocab() == self.tokenizer.get_vocab() else theirs

    def save_student(self, path: str | Path, max_length: int | None = None) -> Path:
        """Save the student as a plain transformers folder, which loads without this package.

        For retrieval the folder is one of sentence-transformers too. A head that learnt nothing is left out of it, as
        `heads.trained_part` says. Its README.md is a model card, unless you wrote one. `load` brings all of it back.

        Args:
            path: The folder to write; a student already there is replaced at once or not at all.
            max_length: The longest text in tokens, if shorter than the student's positions.

        Returns:
            The folder.
        """
        from lightning_distilbert.card import try_card  # it knows how to load students, and so imports this module

        self._name_labels()
        retrieval = self.task.auto_class == "AutoModel"
        saved = save_student(
            heads.trained_part(self),
            self.tokenizer,
            path,
            pooling=self.task.pooling if retrieval else None,
            normalize=getattr(self.task, "normalize", True),
            max_length=max_length,
            details=evaluation.details(self),
            beside=functools.partial(self.task.write_files, self),
        )
        return try_card(saved)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the student is built from, so that loading it needs no teacher, and where training stands."""
        config = getattr(self.student, "config", None)
        if config is not None:
            values = {name: value for name, value in config.to_dict().items() if name != CHECKPOINT_KEY}
            values["fresh_head"] = getattr(config, "fresh_head", False)
            spec = Student(config=values)
            checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["student"] = spec.to_config()
        try:
            checkpoint[CHECKPOINT_KEY] = {"tokenizer": tokenizer_files(self.tokenizer)}
        except DistillationError:  # a module of finished models has none, and trains without
            checkpoint[CHECKPOINT_KEY] = {"tokenizer": None}
        checkpoint[CHECKPOINT_KEY] |= evaluation.findings(self) | self.task.state(self)
        if self._trainer is not None and "optimizer_states" in checkpoint:  # not of weights alone
            checkpoint[CHECKPOINT_KEY]["resume"] = self._resume.state(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the tokenizer from the checkpoint, and put aside what only a fit needs: projections, random states."""
        weights, own = checkpoint["state_dict"], self.state_dict().keys()
        later = [name for name in weights if name.startswith("objectives.") and name not in own]
        checkpoints.check_projections(later, self._trainer)
        self._later = {name.removeprefix("objectives."): weights.pop(name) for name in later}
        kept = checkpoint.get(CHECKPOINT_KEY, {})
        self._resume.load(self._trainer, kept.get("resume"))
        evaluation.restore(self, kept)
        self.task.load_state(self, kept)
        files: Mapping[str, str] | None = kept.get("tokenizer")
        if files and self._tokenizer is None:
            self._tokenizer = tokenizer_from_files(dict(files))
