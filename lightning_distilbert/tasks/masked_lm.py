"""Masked language modelling: which tokens stood where they were masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_distilbert.architectures import logits_at
from lightning_distilbert.data.inputs import check_masks, split_pairs
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional import chunked_cross_entropy, mean_or_zero
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model, watched
from lightning_distilbert.vocabulary import many_logits, projected_at

IGNORED = -100


class MaskedLM(Task):
    r"""Predict the tokens that were masked.

    The loss is the cross-entropy over the vocabulary, averaged over the masked tokens :math:`M` of a batch:

    .. math:: -\frac{1}{|M|} \sum_{i \in M} \log p(x_i)

    Logits over a vocabulary are computed at `positions` alone, for student and teacher alike.

    Args:
        positions: Where: ``"masked"``, at the masked tokens, which is all that the loss needs; or ``"all"``, at all
            real tokens, special ones included, which gives soft targets about seven times as many places. The original
            code of DistilBERT does the latter unless it is told ``--restrict_ce_to_mask``. Where no objective looks on,
            as in validation, logits are computed at the masked tokens all the same. Very many of them are computed
            where they are compared, a part at a time.
        top_k: How many fillings `predict` gives for each mask token.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> task = MaskedLM()
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
        >>> task.loss({"logits": logits}, {"labels": torch.tensor([[-100, 2]])})
        tensor(1.3863)
    """

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    default_objectives: ClassVar[str] = "distilbert"
    data: ClassVar[tuple[str, ...]] = ("MaskedLMData",)
    monitor: str = "val/loss"
    mode: str = "min"

    def __init__(self, positions: Literal["masked", "all"] = "masked", top_k: int = 5) -> None:
        check_choice("MaskedLM(positions=...)", positions, ("masked", "all"))
        if top_k < 1:
            raise DistillationError(f"top_k={top_k}: it has to be 1 or more.")
        self.at = positions
        self.top_k = top_k

    def positions(self, batch: Batch) -> Tensor | None:
        """Return where logits over the vocabulary are computed; None without labels, where nobody knows the masks.

        Args:
            batch: ``labels``, -100 where nothing was masked, and ``attention_mask``, of shape ``(batch, sequence)``.
        """
        labels = batch.get("labels")
        if labels is None:
            return None
        if labels.dim() != 2:
            raise DistillationError(
                f"The labels have the shape {tuple(labels.shape)}, and MaskedLM reads one for each token, -100 where "
                "nothing was masked: (batch, sequence). Give it data such as MaskedLMData."
            )
        masked = labels != IGNORED
        if self.at == "masked":
            return masked
        real = batch.get("attention_mask")
        return torch.ones_like(masked) if real is None else real.bool()

    def unread(self, batch: Batch) -> Batch:
        """Return a batch without targets, so that no logits over the vocabulary are computed; see `Task.unread`."""
        labels = batch.get("labels")
        return batch if labels is None else {**batch, "labels": torch.full_like(labels, IGNORED)}

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return the ``logits`` at the masked tokens, of shape ``(masked, vocabulary)``, row by row.

        Without labels they are those of all tokens, of shape ``(batch, sequence, vocabulary)``.
        """
        positions, rows, later = self.positions(batch), None, False
        if positions is not None and self.at == "all":
            # the objectives see all of them, through the taps; the loss and the metrics need no others than the masked
            masked = batch["labels"] != IGNORED
            if watched(model, "logits"):
                rows = masked[positions].nonzero().squeeze(-1)
                later = many_logits(model, positions)  # the others are then computed where they are compared
            else:
                positions = masked
        with logits_at(model, positions), projected_at(model, rows if later else None):
            logits: Tensor = call_model(model, batch).logits
        if positions is not None and logits.dim() == 3:  # a model of another kind, which was not narrowed
            logits = logits[positions]
        return {"logits": logits if rows is None or len(logits) == len(rows) else logits[rows]}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the mean cross-entropy over the masked tokens; None if the batch has no labels."""
        labels = batch.get("labels")
        if labels is None:
            return None
        logits = outputs["logits"]
        return mean_or_zero(chunked_cross_entropy(logits, labels[labels != IGNORED]), logits)

    def new_metrics(self) -> MaskedLMScores:
        """Return the metrics of one split."""
        return MaskedLMScores()

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the masked tokens in."""
        labels = batch.get("labels")
        if labels is not None:
            metrics.update(outputs["logits"], labels[labels != IGNORED])

    def answer(
        self, module: Any, texts: Sequence[Any], batch_size: int = 32, max_length: int | None = None
    ) -> list[Any]:
        """Fill the mask tokens of texts; see `predict` and `Task.answer`.

        Raises:
            DistillationError: If a text has no mask token; no text is answered then.
        """
        mask = module.tokenizer.mask_token
        firsts, seconds = split_pairs(texts)
        texts = firsts if seconds is None else list(zip(firsts, seconds, strict=True))
        check_masks(texts, firsts, seconds, mask)
        return super().answer(module, texts, batch_size, max_length)

    def predict(self, module: Any, batch: Batch) -> list[Any]:
        """Fill the mask tokens of a batch of texts.

        Args:
            module: What answers a batch of tensors with `run`'s outputs, and has the ``tokenizer``.
            batch: ``input_ids`` and ``attention_mask``; labels are not looked at.

        Returns:
            For each text the `top_k` likeliest fillings of its mask token, as dicts of ``token`` and ``score``, the
            likeliest first. As transformers has it, a text of several mask tokens gets a list for each of them.

        Raises:
            DistillationError: If a text has none, as transformers refuses it too.
        """
        tokenizer = module.tokenizer
        masked = batch["input_ids"] == tokenizer.mask_token_id
        without = (~masked.any(dim=1)).nonzero().flatten().tolist()
        if without:
            text = tokenizer.decode(batch["input_ids"][without[0]], skip_special_tokens=True)
            raise DistillationError(
                f"The text {text[:60]!r} has no {tokenizer.mask_token} among the {len(masked[0])} tokens read, so "
                "that there is nothing to fill in. Put it where a word is to be found."
            )
        # as labels they tell where logits are wanted
        outputs = module({**batch, "labels": torch.where(masked, batch["input_ids"], IGNORED)})
        fillings = iter(self.decode(outputs, None))
        answers: list[Any] = []
        for number in masked.sum(dim=1).tolist():
            text = [
                [{**filling, "token": tokenizer.decode([filling["token"]]).strip()} for filling in next(fillings)]
                for _ in range(number)
            ]
            answers.append(text[0] if number == 1 else text)
        return answers

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return the likeliest fillings of each place, as dicts of ``token`` and ``score``.

        Args:
            outputs: What `run` returned.
            labels: The tokens in the order of their ids; None gives the ids.
        """
        logits = outputs["logits"].detach().float()
        scores, tokens = logits.softmax(dim=-1).topk(min(self.top_k, logits.shape[-1]), dim=-1)
        return [_named(row, ids, labels) for row, ids in zip(scores.tolist(), tokens.tolist(), strict=True)]


def _named(scores: list[Any], tokens: list[Any], labels: Sequence[str] | None) -> list[Any]:
    if scores and isinstance(scores[0], list):  # of one text: place by place
        return [_named(row, ids, labels) for row, ids in zip(scores, tokens, strict=True)]
    return [
        {"token": labels[token] if labels else token, "score": score}
        for token, score in zip(tokens, scores, strict=True)
    ]


class MaskedLMScores(Metric):
    r"""Perplexity and accuracy over all masked tokens, exact over batches and processes of any size.

    The perplexity is :math:`\exp` of the mean cross-entropy.

    Example:
        >>> scores = MaskedLMScores()
        >>> scores.update(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        >>> {name: round(float(value), 4) for name, value in scores.compute().items()}
        {'perplexity': 2.0, 'accuracy': 0.5}
    """

    full_state_update = False

    cross_entropy: Tensor
    lost: Tensor
    correct: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("cross_entropy", torch.zeros(()), dist_reduce_fx="sum")
        # what rounding took (Kahan): sums over millions of tokens lose digits, and not all devices have float64
        self.add_state("lost", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count tokens in.

        Args:
            logits: Of shape ``(tokens, vocabulary)``.
            targets: The true tokens, of shape ``(tokens,)``.
        """
        more = chunked_cross_entropy(logits, targets).sum() - self.lost
        total = self.cross_entropy + more
        self.lost = (total - self.cross_entropy) - more
        self.cross_entropy = total
        # not in place: a reset within a validation leaves states that only inference mode may write to
        self.correct = self.correct + (logits.argmax(dim=-1) == targets).sum()
        self.tokens = self.tokens + targets.numel()

    def compute(self) -> dict[str, Tensor]:
        """Return ``perplexity`` and ``accuracy``; NaN where no token was masked."""
        return {
            "perplexity": ((self.cross_entropy - self.lost) / self.tokens).exp(),
            "accuracy": self.correct / self.tokens,
        }
