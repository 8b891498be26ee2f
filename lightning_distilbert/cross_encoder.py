"""A cross-encoder as the teacher of a bi-encoder: it scores the pairs of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distilbert.architectures import unwrap
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import max_tokens
from lightning_distilbert.joining import PairTemplate
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.ranking import CandidateScores
from lightning_distilbert.teacher import Teacher

CHUNK = 256  # pairs in one forward of the teacher: without gradients more would not be faster
TEACHER = "teacher_"


def is_cross_encoder(model: nn.Module) -> bool:
    """Tell whether a model gives a text, or a pair of texts, one score.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> is_cross_encoder(BertForSequenceClassification(BertConfig(**sizes, num_labels=1)))
        True
    """
    return _outputs(model) == 1


def _outputs(model: nn.Module) -> int | None:
    """Return the number of outputs of a sequence classifier; None of another model."""
    model = unwrap(model)
    classifier = isinstance(model, PreTrainedModel) and type(model).__name__.endswith("ForSequenceClassification")
    return getattr(model.config, "num_labels", None) if classifier else None


def pair_template(
    teacher: Teacher, objectives: Sequence[Objective], student: nn.Module | None = None
) -> PairTemplate | None:
    """Tell whether a teacher scores pairs for some objectives, and return how it reads a pair.

    Args:
        teacher: The teacher.
        objectives: The terms of the loss.
        student: What gives the student's embedding, for a warning if a bare encoder is to imitate a cross-encoder's.

    Returns:
        None if no objective compares the scores of candidates, or the teacher is no cross-encoder.

    Raises:
        DistillationError: If another objective asks a cross-encoder for what it does not have, its tokenizer is not
            known, or the teacher is a classifier of several labels.
    """
    ranking = [objective for objective in objectives if isinstance(objective, CandidateScores)]
    if ranking and teacher.paths == "" and (outputs := _outputs(teacher.model) or 1) > 1:
        raise DistillationError(
            f"The teacher {teacher.name} is a sequence classifier with {outputs} outputs, and "
            f"{type(ranking[0]).__name__} takes scores of a cross-encoder, which has one, or vectors of an encoder. "
            "Take one of these; if its vectors are meant, save its encoder alone (model.base_model.save_pretrained)."
        )
    if teacher.paths != "" or not is_cross_encoder(teacher.model):
        return None
    if not ranking:
        embedded = [type(objective).__name__ for objective in objectives if "embedding" in objective.requires]
        if embedded and isinstance(student, PreTrainedModel) and student.base_model is student:
            rank_zero_warn(
                f"The teacher {teacher.name} has one output, as a cross-encoder has, whose vector of a text alone says "
                f"little, and {', '.join(embedded)} make the student imitate it. Its scores of pairs teach a student "
                "through MarginMSE or RankingKL."
            )
        return None
    others = [type(objective).__name__ for objective in objectives if objective not in ranking]
    if others:
        raise DistillationError(
            f"The teacher {teacher.name} is a cross-encoder, which reads query and document together and scores them: "
            f"it has nothing for {', '.join(others)}, which compare one text with the same text. Take MarginMSE or "
            "RankingKL alone, or save its scores with the data and use a bi-encoder as the teacher."
        )
    if teacher.tokenizer is None:
        raise DistillationError(
            f"The teacher {teacher.name} is a cross-encoder given as a finished model, which comes without the "
            "tokenizer that says how a query and a document are joined. Give the folder or the name of the model."
        )
    return PairTemplate.of(teacher.tokenizer)


def scores_in(batch: Any, queries: int, documents: int) -> Tensor | None:
    """Return the teacher's scores that a batch of retrieval brings along, or None.

    Args:
        batch: The batch.
        queries: How many queries the student ran on.
        documents: How many documents.

    Returns:
        ``batch["scores"]``, of shape ``(queries, documents / queries)``: of each query's own document, then of its hard
        negatives; NaN where there is none.

    Raises:
        DistillationError: If they have another shape.
    """
    scores = batch.get("scores") if isinstance(batch, Mapping) else None
    if scores is None:
        return None
    expected = (queries, documents // max(queries, 1))
    if not isinstance(scores, Tensor) or scores.shape != expected:
        raise DistillationError(
            f"The batch brings scores of shape {tuple(getattr(scores, 'shape', ()))} for {queries} queries and "
            f"{documents} documents: they must be {expected}, first of the query's own document, then of each negative."
        )
    return scores.detach()


@torch.no_grad()
def score_pairs(
    teacher: Teacher, template: PairTemplate, queries: Mapping[str, Any], documents: Mapping[str, Any], own: bool
) -> Tensor:
    """Run a cross-encoder on the pairs of a batch.

    Args:
        teacher: The cross-encoder.
        template: How it reads a pair.
        queries: The inputs of the student's first forward; ``teacher_input_ids`` among them are read instead.
        documents: Those of its second: ``k`` times as many rows, the queries' own documents first.
        own: Whether each query is joined with its own documents only, or with all.

    Returns:
        Scores in float32, of shape ``(batch, k)`` or ``(batch, k * batch)``. NaN for a text without a token.
    """
    prefix = TEACHER if f"{TEACHER}input_ids" in queries else ""
    left, right = (
        {name: side[prefix + name] for name in ("input_ids", "attention_mask") if prefix + name in side}
        for side in (queries, documents)
    )
    for side in (left, right):
        side.setdefault("attention_mask", torch.ones_like(side["input_ids"]))
    batch, count = len(left["input_ids"]), len(right["input_ids"])
    places = torch.arange(count, device=right["input_ids"].device)
    table = places.view(-1, batch).T if own else places.expand(batch, count)  # the documents of each query
    query_rows = torch.arange(batch, device=places.device).unsqueeze(-1).expand_as(table)
    real = left["attention_mask"].any(dim=1)[query_rows] & right["attention_mask"].any(dim=1)[table]
    # Lightning makes bfloat16 the default under "bf16-true"
    scores = torch.full(table.shape, torch.nan, dtype=torch.float32, device=places.device)
    pairs = torch.stack([query_rows[real], table[real]])
    longest = max_tokens(teacher.tokenizer, unwrap(teacher.model))  # type: ignore[arg-type]
    found = [scores.new_empty(0)]
    for part in pairs.split(CHUNK, dim=1):
        if part.shape[1]:
            logits = teacher(template.join(left, right, part[0], part[1], longest), {"logits"}).logits
            assert logits is not None
            found.append(logits.squeeze(-1).float())
    scores[real] = torch.cat(found)
    return scores
