"""What one row of an evaluation is, of each class of metrics, and how a score is made of drawn rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import binary_auroc
from tqdm.auto import tqdm

from lightning_distilbert.data.tags import entities_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import chunked_cross_entropy
from lightning_distilbert.metrics import RetrievalScores
from lightning_distilbert.metrics_entities import NAMES as ENTITY_NAMES
from lightning_distilbert.metrics_entities import EntityScores
from lightning_distilbert.metrics_intents import NAMES as INTENT_NAMES
from lightning_distilbert.metrics_intents import IntentScores
from lightning_distilbert.metrics_reranking import RerankingScores
from lightning_distilbert.metrics_translation import COUNTS, TranslationScores
from lightning_distilbert.report.bootstrap import Statistic, mean
from lightning_distilbert.squad_scores import SquadScores
from lightning_distilbert.tasks.masked_lm import IGNORED, MaskedLMScores

Pieces = list[Tensor]


class Rows(NamedTuple):
    """The rows of an evaluation: what the statistic needs of each, the statistic, and what tells rows apart."""

    columns: list[Tensor]
    statistic: Statistic
    keys: Tensor


@dataclass(frozen=True)
class Kind:
    """How the rows of one class of metrics are scored.

    Attributes:
        unit: What a row is called.
        names: From fresh metrics to the names of those whose rows are known.
        finish: From the task, the metrics, what was gathered of all batches (sorted by row, the number of the row as
            the last piece) and the name of a metric to the rows.
        gather: From the task, the metrics, outputs and a batch to what is kept of each row of that batch; None where
            the metrics keep all that is needed.
    """

    unit: str
    names: Callable[[Any], Sequence[str]]
    finish: Callable[[Any, Any, Pieces, str], Rows]
    gather: Callable[[Any, Any, Any, Any], Pieces] | None = None


def kind_of(task: Any) -> Kind:
    """Find how the rows of a task are scored.

    Args:
        task: The task.

    Raises:
        DistillationError: If nobody knows.

    Example:
        >>> from lightning_distilbert import TextClassification
        >>> kind_of(TextClassification(2)).unit
        'texts'
    """
    metrics = task.new_metrics()
    for cls, kind in KINDS.items():
        if isinstance(metrics, cls):
            return kind
    raise DistillationError(
        f"{type(task).__name__} is scored by a {type(metrics).__name__}, of whose rows nothing is known. Known are "
        f"{', '.join(cls.__name__ for cls in KINDS)}."
    )


def ratio(above: int, below: int, transform: Callable[[Tensor], Tensor] = lambda value: value) -> Statistic:
    """Return the statistic that divides the sum of one column of counts by that of another.

    Args:
        above: The number of the column that is divided.
        below: The number of the column by which it is divided; where that is empty, the value is NaN.
        transform: What is done with the quotient.

    Example:
        >>> ratio(0, 1)(torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
        tensor(0.7500)
    """

    def statistic(counts: Tensor) -> Tensor:
        total = counts.sum(dim=0)
        return transform(total[above] / total[below])

    return statistic


# -- texts with a label ------------------------------------------------------------------------------------------------


def _gather_texts(task: Any, metrics: Any, outputs: Any, batch: Any) -> Pieces:
    logits = outputs["logits"].float()
    single = task.problem_type == "single_label_classification"
    labels = batch.get("labels")
    if labels is None:
        labels = torch.full((len(logits),), IGNORED) if single else torch.full(logits.shape, torch.nan)
    if single:
        return [logits.argmax(dim=-1), labels]
    shown = logits if task.problem_type == "regression" else logits.sigmoid()
    return [shown, labels.float().view_as(logits)]


def _finish_texts(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    labels = pieces[1]
    # as the task counts them
    known = ~labels.isnan().any(dim=1) if labels.is_floating_point() else labels != IGNORED
    predicted, labels, numbers = (piece[known] for piece in pieces)
    if metric == "accuracy":
        return Rows([(predicted == labels).double()], mean, numbers)
    own = task.new_metrics()[metric]
    if task.problem_type == "regression":
        predicted, labels = predicted.squeeze(-1), labels.squeeze(-1)
    elif labels.is_floating_point():
        labels = labels.long()

    def statistic(*columns: Tensor) -> Tensor:
        # the metric itself, on the rows that were drawn: it is no mean over them
        own.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a label that no drawn row has
            own.update(*columns)
            found: Tensor = own.compute()
        return found

    return Rows([predicted, labels], statistic, numbers)


# -- intents -----------------------------------------------------------------------------------------------------------


def _gather_intents(task: Any, metrics: Any, outputs: Any, batch: Any) -> Pieces:
    logits = outputs["logits"].float()
    return [logits, batch["labels"] if "labels" in batch else torch.full((len(logits),), IGNORED)]


def _finish_intents(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    logits, labels, numbers = (piece[pieces[1] >= 0] for piece in pieces)
    inside = labels != metrics.out_of_scope
    probabilities, score, nearest = metrics.scored(logits, metrics.thresholds.get("temperature", 1.0))
    if metric == "oos_auroc":
        return Rows([1 - score, (~inside).long()], _auroc, numbers)
    limit = metrics.thresholds.get("out_of_scope")
    left = score < (probabilities[:, metrics.out_of_scope] if limit is None else limit)
    right = torch.where(left, ~inside, inside & (nearest == labels)).double()
    return Rows([right, inside], INTENTS[metric], numbers)


def _auroc(scores: Tensor, targets: Tensor) -> Tensor:
    # a drawn set of one kind alone tells nothing
    return binary_auroc(scores, targets) if 0 < targets.sum() < len(targets) else scores.new_tensor(torch.nan)


def _balanced(right: Tensor, inside: Tensor) -> Tensor:
    return torch.stack([right[part].mean() for part in (inside, ~inside) if part.any()]).mean()


INTENTS: dict[str, Statistic] = {
    "balanced": _balanced,
    "accuracy": lambda right, inside: right.mean(),
    "in_scope_accuracy": lambda right, inside: right[inside].mean(),
    "oos_recall": lambda right, inside: right[~inside].mean(),
}

# -- sentences with entities -------------------------------------------------------------------------------------------


def _finish_sentences(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    rows = []
    for ours, theirs in zip(*metrics.tags(), strict=True):
        found, true = set(entities_of(ours)), set(entities_of(theirs))
        same = sum(one == other for one, other in zip(ours, theirs, strict=True))
        rows.append([len(found & true), len(found), len(true), same, len(ours), float(found == true), 1.0])
    counts = torch.tensor(rows, dtype=torch.double).view(len(rows), 7)
    return Rows([counts], ENTITIES[metric], torch.cat(metrics.sentence).unique())  # in the order of the tags


def _entity_f1(counts: Tensor) -> Tensor:
    both, found, true = counts.sum(dim=0)[:3]
    return 2 * both / (found + true).clamp(min=1)  # 0 where there is nothing to find, as in seqeval


ENTITIES: dict[str, Statistic] = {
    "precision": ratio(0, 1, lambda value: value.nan_to_num(0.0)),
    "recall": ratio(0, 2, lambda value: value.nan_to_num(0.0)),
    "f1": _entity_f1,
    "accuracy": ratio(3, 4),
    "exact": ratio(5, 6),
}

# -- questions, queries, candidates ------------------------------------------------------------------------------------


def _finish_questions(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    metrics.compute()
    return Rows([metrics.per_example[metric]], mean, metrics.per_example["example"])


def _finish_queries(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    metrics.compute()
    return Rows([metrics.per_query[metric]], mean, metrics.per_query["query"])


def _finish_candidates(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    scores, grades, queries = (torch.cat(getattr(metrics, name)) for name in metrics.STATES)
    numbers, values = queries.unique(), []
    for number in tqdm(numbers.tolist(), desc="score queries", delay=1, leave=False):
        one, own = RerankingScores(**metrics.cuts), queries == number
        one.update(scores[own], grades[own], queries[own])
        values.append(one.compute()[metric])
    found = torch.stack(values) if values else torch.empty(0)
    known = ~found.isnan()  # of a query without an answer among its candidates
    return Rows([found[known]], mean, numbers[known])


# -- masked tokens -----------------------------------------------------------------------------------------------------


def _gather_sequences(task: Any, metrics: Any, outputs: Any, batch: Any) -> Pieces:
    masked = batch["labels"] != IGNORED
    targets, row = batch["labels"][masked], masked.nonzero()[:, 0]
    costs = chunked_cross_entropy(outputs["logits"], targets).double()
    right = (outputs["logits"].argmax(dim=-1) == targets).double()
    parts = torch.stack([costs, right, torch.ones_like(costs)], dim=1)
    return [parts.new_zeros(len(masked), 3).index_add(0, row, parts)]


def _finish_sequences(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    counts, numbers = (piece[pieces[0][:, 2] > 0] for piece in pieces)
    return Rows([counts], MASKED[metric], numbers)


MASKED: dict[str, Statistic] = {
    "loss": ratio(0, 2),  # the mean over all masked tokens
    "perplexity": ratio(0, 2, torch.exp),
    "accuracy": ratio(1, 2),
}

# -- translations ------------------------------------------------------------------------------------------------------


class _Heard:
    """Stands in for the metrics to hear the texts with which a task updates them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.texts: list[list[str]] = [[], []]

    def update(self, *texts: Sequence[str]) -> None:
        self.texts = [list(column) for column in texts]


def _gather_translations(task: Any, metrics: Any, outputs: Any, batch: Any) -> Pieces:
    heard = _Heard(metrics.tokenizer)
    task.update_metrics(heard, outputs, batch)
    translations, references = heard.texts
    if len(translations) < len(batch["input_ids"]):
        raise DistillationError("There are texts without a translation to compare with: each row needs one.")
    return [
        torch.tensor(counter._extract_corpus_statistics(translations, [references]), dtype=torch.long)
        for counter in metrics.counters().values()
    ]


def _finish_translations(task: Any, metrics: Any, pieces: Pieces, metric: str) -> Rows:
    counter = metrics.counters()[metric]

    def statistic(counts: Tensor) -> float:
        return float(counter._compute_score_from_stats(counts.sum(dim=0).tolist()).score)

    return Rows([pieces[list(COUNTS).index(metric)]], statistic, pieces[-1])


def _ranks(metrics: Any) -> list[str]:
    return [f"{name.removesuffix('_at')}@{cut}" for name, cut in metrics.cuts.items()]


KINDS: dict[type, Kind] = {
    MetricCollection: Kind("texts", lambda metrics: [str(name) for name in metrics], _finish_texts, _gather_texts),
    IntentScores: Kind("texts", lambda metrics: INTENT_NAMES, _finish_intents, _gather_intents),
    EntityScores: Kind("sentences", lambda metrics: ENTITY_NAMES, _finish_sentences),
    SquadScores: Kind("questions", lambda metrics: ("em", "f1"), _finish_questions),
    RetrievalScores: Kind("queries", _ranks, _finish_queries),
    RerankingScores: Kind("queries", _ranks, _finish_candidates),
    MaskedLMScores: Kind("sequences", lambda metrics: tuple(MASKED), _finish_sequences, _gather_sequences),
    TranslationScores: Kind("sentences", lambda metrics: tuple(COUNTS), _finish_translations, _gather_translations),
}
