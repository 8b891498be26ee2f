"""Exact match and F1 of answers, as SQuAD's official scripts count them, over windows, batches and processes."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.metrics import first_of_each

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower the letters of an answer, and drop its punctuation, English articles and superfluous white space.

    Example:
        >>> normalize_answer("The  Eiffel-Tower!")
        'eiffeltower'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, truth: str) -> float:
    """Return 1 if two answers are the same when normalised, else 0.

    Example:
        >>> exact_match("the tower", "Tower.")
        1.0
    """
    return float(normalize_answer(answer) == normalize_answer(truth))


def token_f1(answer: str, truth: str, no_answer: bool = False) -> float:
    r"""Return the F1 of the words that two normalised answers share, each as often as it is in both.

    .. math:: F_1 = \frac{2 \, |A \cap B|}{|A| + |B|}

    Args:
        answer: The answer.
        truth: The true answer.
        no_answer: Whether two answers without a word agree, as in SQuAD v2; in v1.1 they share nothing.

    Example:
        >>> token_f1("the tall tower", "tower")
        0.6666666666666666
    """
    words, wanted = normalize_answer(answer).split(), normalize_answer(truth).split()
    if no_answer and not (words and wanted):
        return float(words == wanted)
    same = sum((Counter(words) & Counter(wanted)).values())
    return 2 * same / (len(words) + len(wanted)) if same else 0.0


def answer_scores(answer: str, truths: Sequence[str], no_answer: bool = False) -> tuple[float, float]:
    """Return exact match and F1 of an answer, each with the true answer for which it is best.

    Args:
        answer: The answer; empty for none.
        truths: The true answers.
        no_answer: Whether to count as for SQuAD v2: no true answers stand for the empty one, and true answers without
            a word are left out.

    Example:
        >>> answer_scores("1889", ["in 1889", "1889"]), answer_scores("", [], no_answer=True)
        ((1.0, 1.0), (1.0, 1.0))
    """
    if no_answer:
        truths = [truth for truth in truths if normalize_answer(truth)] or [""]
    if not truths:
        raise DistillationError("An answer cannot be scored without a true one. Set no_answer=True for SQuAD v2.")
    return max(exact_match(answer, truth) for truth in truths), max(
        token_f1(answer, truth, no_answer) for truth in truths
    )


class SquadScores(Metric):
    r"""Exact match and F1 over questions, each answered from one or several windows of its context.

    Every window brings its best span with a score, and the score of no answer there. The answer to a question is the
    span with the highest score of its windows. With ``no_answer`` it is left out where

    .. math:: \min_w \mathrm{null}_w - \max_w \mathrm{score}_w > t

    as BERT and the official script have it. Windows may come in any order, in batches of any size, spread over
    processes in any way; a window that comes twice, as samplers repeat some, counts once.

    Args:
        no_answer: Whether to count as SQuAD's script for v2, which has questions without an answer; else as for v1.1.
        **kwargs: Those of `torchmetrics.Metric`.

    Attributes:
        thresholds: The threshold :math:`t` under ``"no_answer"``; 0 where there is none.

    Example:
        >>> metric = SquadScores()
        >>> metric.update(torch.tensor([0, 0]), torch.tensor([3.0, 5.0]), torch.zeros(2), ["no", "Yes."], [["yes"]] * 2)
        >>> metric.compute()
        {'em': tensor(1.), 'f1': tensor(1.)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    STATES: ClassVar[dict[str, torch.dtype]] = {
        "examples": torch.long,
        "scores": torch.float,
        "nulls": torch.float,
        "em": torch.float,
        "f1": torch.float,
        "answerable": torch.bool,
    }

    def __init__(self, no_answer: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.no_answer = no_answer
        self.thresholds: dict[str, float] = {}
        self._per_example: dict[str, Tensor] | None = None
        for name in self.STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all windows."""
        super().reset()
        self._per_example = None
        # an empty start of the right type: a process that sees no window must still take part in gathering them
        for name, dtype in self.STATES.items():
            getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))

    def update(
        self,
        example: Tensor,
        score: Tensor,
        null: Tensor,
        answers: Sequence[str],
        truths: Sequence[Sequence[str] | None],
    ) -> None:
        """Count windows in.

        Args:
            example: The place of each window's question, int64 of shape ``(windows,)``.
            score: The score of its best span, of that shape; ``-inf`` where there is none.
            null: The score of no answer in it, of that shape.
            answers: The text of its best span.
            truths: The true answers to its question. Questions without a label (None), and without ``no_answer`` those
                without an answer, are left out.

        Raises:
            DistillationError: If there are not as many texts as windows.
        """
        if not len(example) == len(score) == len(null) == len(answers) == len(truths):
            raise DistillationError(
                f"{len(example)} examples, {len(score)} and {len(null)} scores, {len(answers)} answers and "
                f"{len(truths)} true ones do not fit together: there is one of each for every window."
            )
        known = [i for i, truth in enumerate(truths) if truth is not None and (truth or self.no_answer)]
        found = [answer_scores(answers[i], truths[i] or [], self.no_answer) for i in known]
        place = torch.tensor(known, dtype=torch.long, device=self.device)
        self._append("examples", example.to(self.device)[place])
        self._append("scores", score.to(self.device)[place])
        self._append("nulls", null.to(self.device)[place])
        self._append("em", torch.tensor([em for em, _ in found], device=self.device))
        self._append("f1", torch.tensor([f1 for _, f1 in found], device=self.device))
        self._append("answerable", torch.tensor([bool(truths[i]) for i in known], device=self.device))

    def _append(self, name: str, values: Tensor) -> None:
        getattr(self, name).append(values.to(self.STATES[name]))

    def compute(self) -> dict[str, Tensor]:
        """Score the questions.

        Returns:
            ``em`` and ``f1``, in [0, 1] (times 100 is what the official scripts print); NaN if no question was counted.
            With ``no_answer`` these are at the threshold of `thresholds`, and there are also ``has_answer_em``,
            ``has_answer_f1``, ``no_answer_em`` and ``no_answer_f1``, over the questions that have an answer and those
            that have none, ``best_em`` and ``best_f1`` at the threshold that is best for each on these very questions,
            and ``threshold/no_answer``, which is that of ``best_f1``.
        """
        windows = {name: dim_zero_cat(getattr(self, name)) for name in self.STATES}
        # sorted by score and then, stably, by question: the first of each question is its best window
        by_score = windows["scores"].argsort(descending=True, stable=True)
        examples, first = first_of_each(windows["examples"][by_score])
        best = by_score[first]
        answerable = windows["answerable"][best]
        found = {name: windows[name][best] for name in ("em", "f1")}
        rows = torch.searchsorted(examples, windows["examples"])
        null = torch.full_like(found["em"], torch.inf).scatter_reduce(0, rows, windows["nulls"], "amin")
        answered = dict(found)
        if self.no_answer:
            doubt = null - windows["scores"][best]
            left_out = doubt > self.thresholds.get("no_answer", 0.0)
            answered = {name: torch.where(left_out, (~answerable).to(value), value) for name, value in found.items()}
        self._per_example = {"example": examples, **answered}
        results = {name: value.mean() for name, value in answered.items()}
        if self.no_answer:
            for group, members in (("has_answer", answerable), ("no_answer", ~answerable)):
                if members.any():
                    results |= {f"{group}_{name}": value[members].mean() for name, value in answered.items()}
            if len(examples):
                results["best_em"], _ = best_threshold(doubt, found["em"], answerable)
                results["best_f1"], results["threshold/no_answer"] = best_threshold(doubt, found["f1"], answerable)
        return results

    @property
    def per_example(self) -> dict[str, Tensor]:
        """The values behind the last `compute`, one per question: for a bootstrap over them.

        ``"example"`` holds the places of the questions, in ascending order.

        Raises:
            DistillationError: Before `compute`.
        """
        if self._per_example is None:
            raise DistillationError(
                "per_example is known only after compute(), and until reset(). Call compute() first."
            )
        return self._per_example


def best_threshold(doubt: Tensor, score: Tensor, answerable: Tensor) -> tuple[Tensor, Tensor]:
    """Find from which doubt on an answer is best left out.

    Args:
        doubt: The score of no answer less that of the answer, of shape ``(questions,)``.
        score: What the answer to each question counts, of that shape.
        answerable: Whether the question has an answer, of that shape: one that has none counts 1 where the answer is
            left out, any other 0.

    Returns:
        The best mean, and the largest doubt at which an answer is given. Of equally good thresholds it is the lowest,
        as in the official script, and one below all where it is best to answer nothing.

    Example:
        >>> doubt, score = torch.tensor([-2.0, 1.0, 3.0]), torch.tensor([1.0, 0.5, 0.0])
        >>> best_threshold(doubt, score, torch.tensor([True, True, False]))
        (tensor(0.8333), tensor(1.))
    """
    order = doubt.argsort(stable=True)
    doubt, gain = doubt[order], (score - (~answerable).to(score))[order].double()
    totals = torch.cat([gain.new_zeros(1), gain.cumsum(0)]) + (~answerable).sum()
    # a threshold cannot part two equal doubts; one at infinity is of a question without any span
    last = torch.cat([doubt[1:] != doubt[:-1], torch.ones_like(doubt[:1], dtype=torch.bool)]) & doubt.isfinite()
    allowed = torch.cat([torch.ones_like(last[:1]), last])
    totals = totals.masked_fill(~allowed, -torch.inf)
    place = int(totals.argmax())
    nothing = torch.nextafter(doubt[0], torch.full_like(doubt[0], -torch.inf)) if doubt[0].isfinite() else doubt[0] * 0
    return (totals[place] / len(doubt)).to(score), nothing if place == 0 else doubt[place - 1]
