"""The one distillation engine: it computes every term, whichever way it is mounted on the Trainer."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import EncoderDecoderModel, PreTrainedModel

from lightning_distilbert.architectures import layers_of, token_level_head, unwrap
from lightning_distilbert.attention import ATTENTION_SIGNALS, attention_layers
from lightning_distilbert.cross_encoder import pair_template, score_pairs, scores_in
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.joining import PairTemplate
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.ranking import CandidateScores
from lightning_distilbert.schedules import Schedule, check_number, value_at
from lightning_distilbert.signals import ModelFacts, Signals
from lightning_distilbert.taps import ENCODER_SIGNALS, Paths, Record, Taps, resolve_paths
from lightning_distilbert.teacher import Teacher


class Distiller:
    r"""Owns the teacher and the objectives, and adds their terms to the loss of a step.

    .. math:: L = w_0(p) \, L_{task} + \sum_i w_i(p) \, L_i(\text{student}, \text{teacher})

    with the weights at progress :math:`p`. Mean values are over the micro-batch, as in the task losses of
    transformers; Lightning divides by ``accumulate_grad_batches`` and DDP averages over processes.

    Args:
        teacher: The frozen teacher.
        objectives: The terms. They are copied: the projections that this engine makes are no other's.
        student: Where the student's signals come from, as in `Taps`.
        pooling: How the student's sentence embedding is pooled.
        task_weight: The weight :math:`w_0` of the task loss.

    Raises:
        DistillationError: If the task's weight is negative or not finite.

    Example:
        >>> import torch
        >>> from lightning_distilbert.objectives import SoftTargets
        >>> student = nn.Linear(4, 2)
        >>> distiller = Distiller(Teacher(nn.Linear(4, 2)), [SoftTargets(activation="softmax")])
        >>> distiller.build(student)
        >>> with distiller.watch(student) as taps:
        ...     task_loss = student(torch.zeros(3, 4)).sum()
        >>> sorted(distiller.terms(taps.records))
        ['soft_targets']
    """

    def __init__(
        self,
        teacher: Teacher,
        objectives: Sequence[Objective],
        student: Paths = "",
        pooling: str = "mean",
        task_weight: float | Schedule = 1.0,
    ) -> None:
        self.teacher = teacher
        self.objectives = nn.ModuleList(copy.deepcopy(list(objectives)))
        self.student = student
        self.pooling = pooling
        check_number("task_weight=...", task_weight, positive=False)
        self.task_weight = task_weight
        self.requires = frozenset[str]().union(*(objective.requires for objective in objectives))
        self.names = unique_names(objectives)
        self.progress = 0.0
        # how the vocabularies differ, where they do: the teacher then needs the texts in its own encoding
        self.mismatch: DistillationError | None = None
        # how a teacher that is a cross-encoder reads a query with a document; None for any other teacher
        self.pairs: PairTemplate | None = None
        # the teacher's output for each label of the student, where it has the labels in another order
        self.label_order: list[int] | None = None

    @property
    def parts(self) -> list[Objective]:
        """The objectives, typed as what they are."""
        return cast(list[Objective], list(self.objectives))

    @property
    def follows_progress(self) -> bool:
        """Whether anything here changes over training."""
        values = [self.task_weight, *(value for objective in self.parts for value in vars(objective).values())]
        return any(isinstance(value, Schedule) for value in values)

    def compare_vocabularies(self, check: Callable[[Any, Any, str], None], student: Any, teacher: Any) -> None:
        """Tell whether the teacher can read the student's token ids, and if not, whether it has to.

        It does not where all objectives compare sequence by sequence, and the batches bring ``teacher_input_ids``.

        Args:
            check: `doctor.check_vocabularies` or `doctor.check_vocabulary_sizes`.
            student: What the check takes of the student.
            teacher: What it takes of the teacher.

        Raises:
            DistillationError: If the vocabularies differ and an objective compares token by token.
        """
        try:
            check(student, teacher, self.teacher.name)
        except DistillationError as error:
            self.mismatch = error.with_traceback(None)  # which holds on to all that was at hand
            self._refuse_token_level(False)

    def _refuse_token_level(self, token_level_logits: bool) -> None:
        """Refuse objectives that compare token by token what two tokenizers made of a text."""
        names = [type(objective).__name__ for objective in self.parts if objective.token_level]
        if token_level_logits:
            names += [f"{type(objective).__name__} on a token-level head" for objective in self._on_logits()]
        if names:
            why = self.mismatch or "The batch carries teacher_input_ids: leave them out if they do."
            raise DistillationError(
                f"Student and teacher have to share one tokenizer where they are compared token by token, as in "
                f"{', '.join(names)}. {why}"
            ) from self.mismatch

    def _on_logits(self) -> list[Objective]:
        return [objective for objective in self.parts if "logits" in objective.requires]

    def build(self, root: nn.Module) -> None:
        """Check student and teacher against every objective and make the projections.

        Args:
            root: The module under which the student's paths are resolved.

        Raises:
            DistillationError: If an objective cannot compare the two.
        """
        if self.mismatch is not None:
            heads = [self.teacher.model, *resolve_paths(root, self.student, self.requires).values()]
            self._refuse_token_level(any(token_level_head(head) for head in heads))
        embedded = resolve_paths(root, self.student, self.requires).get("embedding")
        self.pairs = pair_template(self.teacher, self.parts, embedded)
        wanted = self.requires if self.pairs is None else frozenset({"logits"})
        if "embedding" in wanted:
            _ = self.teacher.pooling  # what its folder declares is refused here, and not at the first step
        student = facts_of("the student", root, self.student, self.requires)
        teacher = facts_of(f"the teacher {self.teacher.name}", self.teacher.model, self.teacher.paths, wanted)
        for objective in self.parts:
            objective.build(student, teacher)
        self.teacher.open_cache(wanted, self._layers_compared())

    def load_projections(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with the projections of an earlier fit; one that does not fit begins anew, with a warning.

        Args:
            weights: Weights of the objectives, by name.
        """
        own = self.objectives.state_dict()
        misfits = [name for name in weights if name not in own or own[name].shape != weights[name].shape]
        # the bias of a projection says nothing without its matrix
        owners = {name.rpartition(".")[0] for name in misfits}
        fitting = {name: value for name, value in weights.items() if name.rpartition(".")[0] not in owners}
        self.objectives.load_state_dict(fitting, strict=False)
        if misfits:
            rank_zero_warn(
                f"The checkpoint holds {len(owners)} projections that do not fit these objectives, this teacher and "
                f"this student, such as {misfits[0]!r} of shape {tuple(weights[misfits[0]].shape)}: they are left out, "
                "and what projections there are in their place begin anew."
            )

    def _layers_compared(self) -> set[int] | None:
        """The teacher's hidden states that some objective compares; None if one does not say."""
        pairs = [getattr(objective, "pairs", None) for objective in self.parts if "hidden_states" in objective.requires]
        return None if None in pairs else {theirs for chosen in pairs for _, theirs in chosen or ()}

    def watch(self, root: nn.Module, batch: Any = None, positions: Tensor | None = None) -> Taps:
        """Return taps on the student, to be used as a context around its forwards.

        Args:
            root: The module under which the student's paths are resolved.
            batch: The batch of this step.
            positions: Where a token-level head is evaluated, of shape ``(batch, sequence)``; None is everywhere.
        """
        return Taps(root, self.student, self.requires, self.pooling, batch, positions)

    def set_progress(self, trainer: Any) -> None:
        """Read the training progress off the Trainer, for the schedules.

        Args:
            trainer: The Lightning Trainer.

        Raises:
            DistillationError: If there are schedules and training has no end.
        """
        if not self.follows_progress:
            return
        steps = trainer.estimated_stepping_batches
        if steps in (float("inf"), -1, 0):
            raise DistillationError(
                f"A schedule needs to know how long training lasts, and the Trainer plans {steps} optimizer steps. "
                "Set max_epochs or max_steps."
            )
        done = trainer.global_step
        if trainer.max_steps == -1 and not trainer.lightning_module.automatic_optimization:
            # the steps of every optimizer are counted there, and each may take any number of batches
            done = trainer.fit_loop.epoch_loop.total_batch_idx
        self.progress = min(done / steps, 1.0)
        for objective in self.parts:
            objective.progress = self.progress

    def terms(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Run the teacher on each recorded forward and compute the terms, not yet weighted.

        Args:
            records: One for each student forward of this step, in order.

        Returns:
            The terms by name, float32 scalars with a graph.

        Raises:
            DistillationError: If the student did not run, or the batch does not hold what a teacher with another
                tokenizer reads.
        """
        if not records:
            raise DistillationError(
                f"The student at {self.student!r} was not run in this training step, so that there is nothing to "
                "compare with the teacher. Check the path, and that training_step calls this module itself (a "
                "compiled copy does not run its hooks)."
            )
        # a forward without gradients, such as one for a training accuracy, teaches nothing
        records = [record for record in records if record.has_graph] or records
        students = [record.signals for record in records]
        teachers = self._ask_teacher(records)
        late = all(objective.takes_late_logits for objective in self._on_logits())
        for one, other in zip(students, teachers, strict=True):
            # a cache, or a model that cannot, gives logits; and an objective of the user's own knows no others
            if not (late and one.late_logits is not None and other.late_logits is not None):
                one.compute_logits()
                other.compute_logits()
        if self.label_order is not None:
            for signals in teachers:
                signals.logits = None if signals.logits is None else signals.logits[..., self.label_order]
        return {
            name: objective.over_records(students, teachers)
            for name, objective in zip(self.names, self.parts, strict=True)
        }

    def _ask_teacher(self, records: Sequence[Record]) -> list[Signals]:
        """Run the teacher on each recorded forward, unless the batch brings all that the objectives want of it."""
        ranking = [objective for objective in self.parts if isinstance(objective, CandidateScores)]
        scores, each = None, 0
        if ranking and len(records) == 2:
            rows = [len(record.signals.embedding) for record in records if record.signals.embedding is not None]
            if len(rows) == 2 and rows[0] and rows[1] % rows[0] == 0:
                each, scores = rows[1] // rows[0], scores_in(records[0].batch, *rows)
        served = [objective for objective in ranking if scores is not None and objective.takes_own(each)]
        scores = scores if served else None
        if len(served) == len(self.parts):
            teachers = [Signals() for _ in records]
        else:
            for record in records:
                self._check_encoding(record)
            if self.pairs is not None and each:
                own = all(objective.takes_own(each) for objective in ranking)
                scores = score_pairs(self.teacher, self.pairs, records[0].inputs, records[1].inputs, own)
                teachers = [Signals() for _ in records]
            else:
                teachers = [
                    self.teacher(
                        record.inputs,
                        self.requires,
                        record.signals.mask,
                        record.signals.positions,
                        late=record.signals.late_logits is not None,
                    )
                    for record in records
                ]
        teachers[-1].scores = scores
        return teachers

    def _check_encoding(self, record: Record) -> None:
        """Check that the teacher gets what it can read, and is compared with what can be compared."""
        if "teacher_input_ids" in record.inputs:
            logits = record.signals.logits
            # where both models decode the same translation its positions are those of both
            text_positions = record.signals.positions is not None and "decoder_input_ids" not in record.inputs
            tokens = text_positions or record.signals.classes is not None
            self._refuse_token_level(tokens or (logits is not None and logits.dim() > 2))
        elif self.mismatch is not None:
            raise DistillationError(
                "The batch holds no teacher_input_ids, and the teacher cannot read the student's input_ids. Let the "
                "data bring the same texts as the teacher's tokenizer encodes them: teacher_input_ids and "
                f"teacher_attention_mask beside input_ids. {self.mismatch}"
            ) from self.mismatch

    def total(self, task_loss: Tensor | None, records: Sequence[Record]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the weighted terms to the task loss.

        A weight of 0 multiplies and does not skip: under DDP every parameter takes part in every step.

        Args:
            task_loss: The task's own loss, or None if there is none (rows without labels).
            records: One for each student forward of this step.

        Returns:
            The loss to train on, and what to log: ``distill/<name>`` for each term before weighting.
        """
        terms = self.terms(records)
        weighted = [
            objective.current_weight() * terms[name] for name, objective in zip(self.names, self.parts, strict=True)
        ]
        if task_loss is not None:
            weighted.insert(0, value_at(self.task_weight, self.progress) * task_loss)
        return functools.reduce(operator.add, weighted), {
            f"distill/{name}": term.detach() for name, term in terms.items()
        }


def unique_names(objectives: Sequence[Objective]) -> list[str]:
    """Name each objective for the log; the second of a kind gets a number.

    Example:
        >>> from lightning_distilbert.objectives import SoftTargets
        >>> unique_names([SoftTargets(), SoftTargets()])
        ['soft_targets', 'soft_targets_2']
    """
    seen: dict[str, int] = {}
    names = []
    for objective in objectives:
        seen[objective.name] = count = seen.get(objective.name, 0) + 1
        names.append(objective.name if count == 1 else f"{objective.name}_{count}")
    return names


def facts_of(name: str, root: nn.Module, paths: Paths, requires: frozenset[str]) -> ModelFacts:
    """Gather what the objectives may know of a model before training.

    Args:
        name: What to call it in an error.
        root: The module under which the paths are resolved.
        paths: Where its signals come from.
        requires: The signals that are needed.

    Raises:
        DistillationError: If a path leads nowhere, logits are needed of an encoder without a head, or what attention
            computes is needed of a model that does not show it.
    """
    sources = resolve_paths(root, paths, requires)
    body = next(sources[signal] for signal in (*ENCODER_SIGNALS, "logits") if signal in sources)
    facts = ModelFacts.of(name, getattr(body, "config", None))
    head = sources.get("logits")
    if isinstance(head, PreTrainedModel) and head.base_model is head and not isinstance(head, EncoderDecoderModel):
        apart = (
            " Where the head is a module of its own, name it: student={'hidden_states': ..., 'logits': 'classifier'}."
        )
        raise DistillationError(
            f"The objectives compare logits, and {name} is a bare encoder ({type(head).__name__}) that gives none. Use "
            "a model with a head, fine-tuned on this task, or objectives on hidden states or embeddings."
            + (apart if name == "the student" else "")
        )
    whole = None if head is None else unwrap(head)
    if type(whole).__name__.endswith("ForPreTraining") and cast(Any, whole).get_output_embeddings() is not None:
        raise DistillationError(
            f"The objectives compare logits, and {name} is a {type(whole).__name__}, which has two heads. Load its "
            "folder with AutoModelForMaskedLM and save it again, for the logits over the vocabulary alone."
        )
    head_config = getattr(head, "config", None)
    num_labels = getattr(head, "out_features", getattr(head_config, "num_labels", None))
    if head_config is not None and getattr(head_config, "is_encoder_decoder", False):
        num_labels = cast(Any, getattr(head_config, "decoder", head_config)).vocab_size
    elif type(whole).__name__.endswith("ForMaskedLM"):
        num_labels = cast(Any, head_config).vocab_size
    num_layers, num_heads = facts.num_layers, facts.num_heads
    if "hidden_states" in requires:
        num_layers = len(layers_of(body))
    if attended := requires & set(ATTENTION_SIGNALS):
        layers = attention_layers(sources[min(attended)], "attention_scores" in requires)
        num_layers, num_heads = len(layers), layers[0].num_heads
    return ModelFacts(
        name=name,
        num_layers=num_layers,
        hidden_size=facts.hidden_size,
        num_heads=num_heads,
        num_labels=num_labels,
        # the config of a token-level head may still name the problem of the head that it had before
        problem_type=None if head is None or token_level_head(head) else getattr(head_config, "problem_type", None),
        initialised_from=facts.initialised_from,
        initialised_depth=facts.initialised_depth,
    )
