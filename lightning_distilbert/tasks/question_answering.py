"""Question answering: the span of a text that answers a question, or that there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_distilbert.answers import Candidate, settle, trim
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.inputs import checked_pairs
from lightning_distilbert.data.windows import encode_windows, pad_windows
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import full_precision
from lightning_distilbert.functional.spans import best_spans, first_of, span_cross_entropy, span_mask
from lightning_distilbert.prediction import evaluating, room
from lightning_distilbert.squad_scores import SquadScores
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model

MONITORS = {False: ("em", "f1"), True: ("best_em", "best_f1", "em", "f1")}
FOR_TEXTS = ("example", "offsets", "context")


class QuestionAnswering(Task):
    """Find the span of a context that answers a question.

    The loss is the cross-entropy of the answer's first and last token, each over the tokens of the context and the
    first token, which stands for no answer (`lightning_distilbert.functional.span_cross_entropy`). Long contexts are
    read in windows. The answer is the span with the highest sum of start and end logit of all windows, as in BERT's
    script; its score is the probability of its start times that of its end, in its window.

    Args:
        no_answer: Whether a question may have no answer in its context, as in SQuAD v2. None is then given where the
            lowest score of no answer in any window exceeds the best span's by more than a threshold, which is chosen on
            validation data.
        max_answer_length: Tokens of an answer at most.
        doc_stride: Tokens that a window shares with the one before it.
        max_question_length: Tokens of a question at most.
        monitor: The metric that tells which checkpoint is best: ``f1`` or ``em``; with `no_answer` also ``best_f1`` or
            ``best_em``, those at the best threshold, of which the first is the default.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> QuestionAnswering().monitor, QuestionAnswering(no_answer=True).monitor
        ('val/f1', 'val/best_f1')
    """

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    default_objectives: ClassVar[str] = "layerwise"
    fields: ClassVar[tuple[str, ...]] = ("question", "context")
    data: ClassVar[tuple[str, ...]] = ("QuestionAnsweringData",)
    mode: str = "max"

    def __init__(
        self,
        no_answer: bool = False,
        max_answer_length: int = 30,
        doc_stride: int = 128,
        max_question_length: int = 64,
        monitor: str | None = None,
    ) -> None:
        for name, size, least in (
            ("max_answer_length", max_answer_length, 1),
            ("max_question_length", max_question_length, 1),
            ("doc_stride", doc_stride, 0),
        ):
            if size < least:
                raise DistillationError(f"QuestionAnswering({name}={size}): it has to be {least} or more.")
        if monitor is not None and monitor not in MONITORS[no_answer]:
            raise DistillationError(
                f"monitor={monitor!r}: with no_answer={no_answer} it is one of {list(MONITORS[no_answer])}."
            )
        self.no_answer = no_answer
        self.max_answer_length = max_answer_length
        self.doc_stride = doc_stride
        self.max_question_length = max_question_length
        self.monitor = f"val/{monitor or ('best_f1' if no_answer else 'f1')}"

    def model_config(self) -> dict[str, Any]:
        """Return the config values that give the student this head: one output for the start, one for the end."""
        return {"num_labels": 2}

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return ``start_logits`` and ``end_logits``, both of shape ``(batch, sequence)``."""
        output = call_model(model, batch)
        return {"start_logits": output.start_logits, "end_logits": output.end_logits}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the mean loss over rows with a label; None if the batch carries no labels at all."""
        if "start_positions" not in batch:
            return None
        start, end = outputs["start_logits"], outputs["end_logits"]
        return span_cross_entropy(start, end, batch["start_positions"], batch["end_positions"], _mask(batch, start))

    def new_metrics(self) -> SquadScores:
        """Return the metrics of one split."""
        return SquadScores(self.no_answer)

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the windows in whose questions have labels."""
        _check_texts(batch)
        if "answers" not in batch:
            return
        found = self.candidates(outputs, batch)
        scores, nulls = torch.tensor([[item.score, item.null] for item in found]).unbind(dim=1)
        texts = [text[item.start : item.end] for text, item in zip(batch["context"], found, strict=True)]
        metrics.update(batch["example"], scores, nulls, texts, batch["answers"])

    def candidates(self, outputs: Outputs, batch: Batch) -> list[Candidate]:
        """Find the best span of each window.

        Args:
            outputs: What `run` returned.
            batch: The same batch, with ``offsets`` and ``context``.

        Returns:
            One candidate per row; one of score ``-inf`` without a character where the window holds no context.

        Raises:
            DistillationError: If the batch does not tell which characters its tokens are.
        """
        _check_texts(batch)
        start, end = outputs["start_logits"].detach().float(), outputs["end_logits"].detach().float()
        mask = _mask(batch, start)
        null_at = first_of(mask)
        with full_precision(start):
            # byte-level tokenizers have tokens without a character of their own, for white space
            seen = batch["offsets"][..., 0] < batch["offsets"][..., 1]
            scores, first, last = best_spans(start, end, mask & ~null_at & seen, self.max_answer_length)
            nulls = (start + end).masked_fill(~null_at, 0.0).sum(dim=1)
            # over the same tokens as in training
            total = sum(logits.masked_fill(~mask, -torch.inf).logsumexp(dim=1) for logits in (start, end))
        rows = torch.arange(len(start), device=start.device)
        begins, ends = batch["offsets"][rows, first, 0], batch["offsets"][rows, last, 1]
        columns = [scores, nulls, (scores - total).exp(), (nulls - total).exp(), begins, ends]
        found = []
        for text, *values in zip(batch["context"], *(column.tolist() for column in columns), strict=True):
            score, null, probability, null_probability, begin, stop = values
            begin, stop = trim(text, begin, stop) if score > -torch.inf else (0, 0)
            found.append(Candidate(score, null, probability, null_probability, begin, stop))
        return found

    def settle(self, candidates: Sequence[Candidate], context: str, threshold: float = 0.0) -> dict[str, Any]:
        """Choose the answer to one question from the candidates of its windows.

        Args:
            candidates: One for each window.
            context: The whole context.
            threshold: By how much no answer has to score higher than the best span, with `no_answer`.

        Returns:
            ``answer``, ``score`` (a probability), ``start`` and ``end`` (characters: ``context[start:end]`` is the
            answer). No answer is the empty text, with None for start and end and its own probability.
        """
        return settle(candidates, context, threshold if self.no_answer else None)

    def answer(
        self, module: Any, texts: Sequence[Any], batch_size: int = 32, max_length: int | None = None
    ) -> list[Any]:
        """Answer questions from their contexts, long ones in windows: what `DistillationModule.predict` does.

        Args:
            module: The `DistillationModule` of this task.
            texts: Pairs of a question and its context.
            batch_size: Windows in a batch; windows of similar length go together.
            max_length: Tokens of a window at most; None is what tokenizer and student allow.

        Returns:
            One answer per pair, as `settle` returns it.

        Raises:
            DistillationError: If something in it is no pair, or a window is too small.
        """
        questions, contexts = checked_pairs(texts)
        tokenizer = module.tokenizer
        longest = room(module, max_length)
        limits = (longest, self.doc_stride, self.max_question_length)
        windows = encode_windows(tokenizer, questions, contexts, *limits, shrink=True)
        order = sorted(range(len(windows)), key=windows.lengths.__getitem__, reverse=True)
        found: dict[int, list[Candidate]] = {}
        padding = Padding.of(tokenizer)
        with evaluating(module), tqdm(total=len(order), desc="answer", unit=" windows", delay=1, leave=False) as bar:
            for start in range(0, len(order), batch_size):
                batch = to_device(pad_windows(windows[order[start : start + batch_size]], padding), module.device)
                self._gather(found, module(batch), batch)
                bar.update(len(batch["example"]))
        threshold = _threshold(module)
        return [self.settle(found[place], context, threshold) for place, context in enumerate(contexts)]

    def predict(self, module: Any, batch: Batch) -> list[Any]:
        """Answer the questions of a batch that holds all windows of each, as that of ``predict_dataloader`` does.

        Args:
            module: The `DistillationModule` of this task.
            batch: Tensors under transformers' names, with ``example``, ``offsets`` and ``context``.

        Returns:
            One answer per question, in the order in which they come, as `settle` returns it.
        """
        _check_texts(batch)
        found: dict[int, list[Candidate]] = {}
        examples = batch["example"].tolist()
        contexts = dict(zip(examples, batch["context"], strict=True))
        # not more rows at once than questions: a long text has hundreds of windows
        for part in split_rows(batch, len(contexts)):
            self._gather(found, module(part), part)
        threshold = _threshold(module)
        return [self.settle(found[example], context, threshold) for example, context in contexts.items()]

    def _gather(self, found: dict[int, list[Candidate]], outputs: Outputs, batch: Batch) -> None:
        for example, candidate in zip(batch["example"].tolist(), self.candidates(outputs, batch), strict=True):
            found.setdefault(example, []).append(candidate)


def _check_texts(batch: Batch) -> None:
    if missing := [name for name in FOR_TEXTS if name not in batch]:
        raise DistillationError(
            f"An answer is a part of a text, and the batch holds no {', '.join(missing)}. Give the Trainer a "
            "QuestionAnsweringData, or call predict() on pairs of a question and its context."
        )


def _mask(batch: Batch, logits: Tensor) -> Tensor:
    mask = span_mask(batch)
    return torch.ones_like(logits, dtype=torch.bool) if mask is None else mask


def _threshold(module: Any) -> float:
    return float(getattr(module, "thresholds", {}).get("no_answer", 0.0))


def to_device(batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Move the tensors of a batch; its texts stay."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def split_rows(batch: Mapping[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """Yield parts of a batch with so many rows at most."""
    for start in range(0, len(batch["input_ids"]), max(1, rows)):
        yield {name: value[start : start + max(1, rows)] for name, value in batch.items()}
