"""What each row of an evaluation adds to a task's score: for intervals, and for tests of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from lightning_distilbert.deploy.verify import new_metrics
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.evaluation import THRESHOLD
from lightning_distilbert.prediction import evaluating
from lightning_distilbert.report.bootstrap import Statistic
from lightning_distilbert.report.row_kinds import kind_of

LOWER_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class RowScores:
    """A score in parts that a bootstrap draws anew.

    Attributes:
        columns: What the statistic needs of each row, of shape ``(N, ...)`` each.
        statistic: From the columns to the score.
        keys: What tells the rows apart, of shape ``(N,)``: the same for each model that read the same data.
        scores: All metrics of the task, on all rows.
    """

    columns: list[Tensor]
    statistic: Statistic
    keys: Tensor
    scores: dict[str, float] = field(default_factory=dict)


def check_metric(task: Any, metric: str) -> str:
    """Refuse a metric that a task does not have, and return whether ``"max"`` or ``"min"`` of it is best.

    Args:
        task: The task.
        metric: The name of the metric.

    Raises:
        DistillationError: If the task has none of that name.

    Example:
        >>> from lightning_distilbert import MaskedLM
        >>> check_metric(MaskedLM(), "perplexity")
        'min'
    """
    check_choice(f"compare(metric=...) of {type(task).__name__}", metric, kind_of(task).names(task.new_metrics()))
    return "min" if metric in LOWER_IS_BETTER else "max"


def row_scores(module: Any, loaders: Sequence[Any], metric: str, name: str = "model") -> RowScores:
    """Run a model on the rows of an evaluation, and keep what each adds to a metric.

    A metric that is a mean over rows is kept as its values; of another, such as a correlation or the F1 of entities,
    what it is computed from, so that it can be computed anew on drawn rows. Thresholds are those that ship.

    Args:
        module: The `DistillationModule`.
        loaders: The loaders, run through one after another.
        metric: The name of the metric.
        name: What the progress bar says.

    Returns:
        The rows, in the order of their keys.

    Raises:
        DistillationError: If no row has a label, or a loader is shuffled.
    """
    task = module.task
    kind = kind_of(task)
    metrics = new_metrics(module)
    found: list[list[Tensor]] = []
    with evaluating(module):
        for loader in loaders:
            numbers, seen = row_numbers(loader), 0
            for batch in tqdm(loader, desc=f"evaluate {name}", unit=" batches", delay=1, leave=False):
                outputs = module(batch)
                task.update_metrics(metrics, outputs, batch)
                size = len(batch["input_ids"])
                if kind.gather is not None:
                    rows = [part.detach().cpu() for part in kind.gather(task, metrics, outputs, batch)]
                    found.append(
                        [*rows, torch.arange(seen, seen + size) if numbers is None else numbers[seen : seen + size]]
                    )
                seen += size
    pieces = [torch.cat(parts) for parts in zip(*found, strict=True)]
    if pieces:
        order = pieces[-1].argsort(stable=True)
        pieces = [piece[order] for piece in pieces]
    columns, statistic, keys = kind.finish(task, metrics, pieces, metric)
    if not len(columns[0]):
        raise DistillationError(
            f"None of the {kind.unit} has what {metric} is measured by, such as a label: nothing can be compared on "
            "them. Name the column that holds it."
        )
    scores = {key: float(value) for key, value in metrics.compute().items() if not key.startswith(THRESHOLD)}
    return RowScores(columns, statistic, keys, scores | {metric: float(statistic(*columns))})


def row_numbers(loader: Any) -> Tensor | None:
    """Return the number of each row in its data set, in the order in which a loader gives them.

    Args:
        loader: A `DataLoader`; its sampler may yield rows, or whole batches of them.

    Returns:
        The numbers, of shape ``(rows,)``; None of a stream, which has one order.

    Raises:
        DistillationError: If that order is another each time.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> row_numbers(DataLoader(range(3), sampler=[[2, 0], [1]], batch_size=None)).tolist()
        [2, 0, 1]
    """
    if isinstance(loader.dataset, IterableDataset):
        return None
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler

    def rows() -> list[int]:
        return [row for item in sampler for row in (item if isinstance(item, (list, tuple)) else [item])]

    found = rows()
    if found != rows():
        raise DistillationError(
            "The evaluation's loader gives the rows in another order each time, so that nobody could tell which of two "
            "models' rows belong together. Do not shuffle it."
        )
    return torch.tensor(found, dtype=torch.long)
