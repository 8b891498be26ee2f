"""The objective on predictions: the student says what the teacher says, with the teacher's doubts."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.late_logits import late_forward_kl
from lightning_distilbert.functional.masking import both, check_same_shape
from lightning_distilbert.functional.soft_targets import Activation, Divergence, check_divergence, soft_targets
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.schedules import Schedule, check_number, value_at
from lightning_distilbert.signals import ModelFacts, Signals

ActivationOption = Literal["auto", "softmax", "sigmoid", "identity"]

PROBLEM_ACTIVATIONS: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "identity",
}


class SoftTargets(Objective):
    r"""Divergence of the student's predictions from the teacher's (Hinton et al. 2015, section 2).

    .. math:: \mathcal{L} = \frac{T^2}{N} \sum_n \mathrm{KL}\left(\mathrm{softmax}(z^T_n / T) \,\|\,
        \mathrm{softmax}(z^S_n / T)\right)

    `lightning_distilbert.functional.soft_targets` has the formulas of all activations and divergences and says how a
    temperature fails. Sequence-level and token-level logits both work; of the latter only real tokens count. Of a head
    that points into the text (question answering) start and end are two distributions, over the tokens where an answer
    may start or end: neither the question nor padding has a share in them. Logits over a vocabulary are compared a few
    rows at a time, so that their float32 copies never stand in memory; of very many, nor do the logits themselves.

    Args:
        temperature: :math:`T`, above 0, a number or a `Schedule`. It has no part under ``identity``.
        activation: What makes predictions of the logits: ``softmax`` (one label), ``sigmoid`` (any number of labels),
            ``identity`` (regression). ``auto`` follows the models' ``problem_type``, and takes ``identity`` for a
            single logit (softmax over one logit is always 1, and its loss always zero), else ``softmax``.
        divergence: ``forward`` (the formula above: the student may leave out nothing that the teacher says),
            ``reverse`` (it may say nothing that the teacher leaves out) or ``js`` (Jensen-Shannon, between the two).
            A regression has none.
        beta: The teacher's share in the mixture of ``js``, in (0, 1): near 0 it is like ``forward``, near 1 like
            ``reverse``. The others do not use it.
        top_k: Keep only the teacher's most probable classes apart, this many at each position, and compare the sum of
            all others as one more class. None keeps all. For ``softmax`` only.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> import torch
        >>> objective = SoftTargets(temperature=1.0)
        >>> student = Signals(logits=torch.tensor([[0.0, 0.0]]))
        >>> teacher = Signals(logits=torch.tensor([[0.0, 2.0]]))
        >>> objective(student, teacher)
        tensor(0.3278)
    """

    requires = frozenset({"logits"})
    name = "soft_targets"

    def __init__(
        self,
        temperature: float | Schedule = 2.0,
        activation: ActivationOption = "auto",
        divergence: Divergence = "forward",
        beta: float = 0.5,
        top_k: int | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        check_number("SoftTargets(temperature=...)", temperature, positive=True)
        check_choice("SoftTargets(activation=...)", activation, get_args(ActivationOption))
        self.temperature = temperature
        check_divergence("SoftTargets", activation, divergence, beta, top_k)
        self.activation = activation
        self.divergence: Divergence = divergence
        self.beta = beta
        self.top_k = top_k
        # what "auto" stands for, where the models' facts settle it
        self.resolved: Activation | None = None if activation == "auto" else activation

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Check that both heads speak of the same labels, and settle ``activation="auto"``.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If the numbers of labels differ, the models name different problems, softmax is asked
                for a single logit, or the activation has no such divergence.
        """
        if None not in (student.num_labels, teacher.num_labels) and student.num_labels != teacher.num_labels:
            raise DistillationError(
                f"SoftTargets compares logit by logit, but {student.name} has {student.num_labels} labels and "
                f"{teacher.name} has {teacher.num_labels}. Give the student the teacher's labels, or use a teacher "
                "fine-tuned on this task."
            )
        num_labels = teacher.num_labels if student.num_labels is None else student.num_labels
        if self.activation == "auto":
            self.resolved = self._activation_of(student, teacher, num_labels)
            check_divergence("SoftTargets", self.resolved, self.divergence, self.beta, self.top_k)
        if self.resolved == "softmax" and num_labels == 1:
            raise DistillationError(
                f"SoftTargets(activation='softmax'): {student.name} has a single logit, over which softmax is always 1 "
                "and this loss always zero. Use 'identity' for a regression and 'sigmoid' for a yes-or-no label."
            )

    def _activation_of(self, student: ModelFacts, teacher: ModelFacts, num_labels: int | None) -> Activation | None:
        problems = {facts.problem_type for facts in (student, teacher) if facts.problem_type is not None}
        if unknown := problems - PROBLEM_ACTIVATIONS.keys():
            raise DistillationError(
                f"SoftTargets(activation='auto') met the problem_type {sorted(unknown)}: known are "
                f"{list(PROBLEM_ACTIVATIONS)}. Set the activation by hand."
            )
        if len(problems) > 1:
            raise DistillationError(
                f"SoftTargets(activation='auto'): {student.name} has the problem_type {student.problem_type!r} and "
                f"{teacher.name} {teacher.problem_type!r}. Take a teacher of the same task, or set the activation."
            )
        if num_labels is None and not problems:
            return None  # the logits themselves will tell
        activation = PROBLEM_ACTIVATIONS[problems.pop()] if problems else "softmax"
        return "identity" if activation == "softmax" and num_labels == 1 else activation

    @property
    def takes_late_logits(self) -> bool:  # type: ignore[override]
        """Whether it compares logits that are not there yet: only the forward divergence of all classes does."""
        return self.divergence == "forward" and self.top_k is None and self.resolved in (None, "softmax")

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare the logits of one student forward with the teacher's.

        Args:
            student: With ``logits`` of shape ``(batch, num_labels)``, ``(batch, sequence, num_labels)``,
                ``(positions, vocabulary)`` where a head was evaluated at chosen positions, or ``(2 * batch, sequence)``
                with ``classes`` of that shape for spans.
            teacher: With ``logits`` of the same shape.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where no row counts.

        Raises:
            DistillationError: If logits are missing or their shapes differ.
        """
        temperature = value_at(self.temperature, self.progress)
        if student.late_logits is not None and teacher.late_logits is not None:
            return temperature**2 * late_forward_kl(student.late_logits, teacher.late_logits, temperature)
        if student.logits is None or teacher.logits is None:
            missing = "student" if student.logits is None else "teacher"
            raise DistillationError(f"SoftTargets needs logits, and the {missing} gave none: use a model with a head.")
        check_same_shape("logits", student.logits, teacher.logits)
        activation = self.resolved or ("identity" if student.logits.shape[-1] == 1 else "softmax")
        # both see the same tokens, and the student is nearer to what the data says of them
        classes = teacher.classes if student.classes is None else student.classes
        return soft_targets(
            student.logits,
            teacher.logits,
            temperature=temperature,
            mask=both(student.logits_mask(), teacher.logits_mask()),
            activation=activation,
            divergence=self.divergence,
            beta=self.beta,
            top_k=self.top_k,
            classes=classes,
        )
