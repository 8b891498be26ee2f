"""Queries and documents joined as a cross-encoder reads them, from the tokens of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError


@dataclass(frozen=True)
class PairTemplate:
    """What a tokenizer puts around and between the two texts of a pair.

    Texts are tokenised once and apart, special tokens included. Joining them gives what the tokenizer gives for the
    pair: tokenizers never look across the border of two texts.

    Attributes:
        before: The special tokens before the first text.
        between: Those between the texts.
        after: Those after the second text.
        types: The token types of the three and, between them, of the two texts; None where the tokenizer has none.
        alone: How many special tokens stand before and after a text that stands alone.
        pad_token_id: The padding token.
        pad_token_type_id: The token type at padding.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "b": 6})
        >>> template = PairTemplate.of(words)
        >>> template.before, template.between, template.after
        ((2,), (3,), (3,))
        >>> queries, documents = (words(text, return_tensors="pt") for text in (["a"], ["b b", "b a"]))
        >>> pairs = template.join(queries, documents, torch.tensor([0, 0]), torch.tensor([0, 1]), max_length=8)
        >>> pairs["input_ids"].tolist()
        [[2, 5, 3, 6, 6, 3], [2, 5, 3, 6, 5, 3]]
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int] | None
    alone: tuple[int, int]
    pad_token_id: int
    pad_token_type_id: int = 0

    @classmethod
    def of(cls, tokenizer: Any) -> PairTemplate:
        """Read the template off a tokenizer.

        Args:
            tokenizer: A transformers tokenizer.

        Raises:
            DistillationError: If it puts special tokens elsewhere, or has no padding token.
        """
        probe = "a"
        single, pair = (
            tokenizer(*texts, return_special_tokens_mask=True, return_attention_mask=False)
            for texts in ((probe,), (probe, probe))
        )
        runs, lone = _runs(pair["special_tokens_mask"]), _runs(single["special_tokens_mask"])
        if len(runs) != 5 or len(lone) != 3 or tokenizer.pad_token_id is None:
            raise DistillationError(
                f"The tokenizer {type(tokenizer).__name__} joins two texts as {pair['input_ids']} and pads with "
                f"{tokenizer.pad_token_id}: a cross-encoder needs special tokens before, between and after the texts, "
                "and a padding token."
            )
        before, _, between, _, after = (tuple(pair["input_ids"][run]) for run in runs)
        types: Any = None
        if "token_type_ids" in pair:
            types = tuple(pair["token_type_ids"][run.start] for run in runs)
        alone = lone[0].stop - lone[0].start, lone[2].stop - lone[2].start
        return cls(before, between, after, types, alone, tokenizer.pad_token_id, tokenizer.pad_token_type_id)

    @property
    def special(self) -> int:
        """How many special tokens a pair has."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(
        self,
        queries: Mapping[str, Tensor],
        documents: Mapping[str, Tensor],
        query_rows: Tensor,
        document_rows: Tensor,
        max_length: int,
        multiple_of: int | None = None,
    ) -> dict[str, Tensor]:
        """Join rows of two batches; the longer part is cut first, as the tokenizer cuts a pair.

        Args:
            queries: ``input_ids`` and ``attention_mask`` of shape ``(queries, sequence)``, each row a text with its
                special tokens, or without any token.
            documents: The same of the documents.
            query_rows: The row of the query of each pair, of shape ``(pairs,)``.
            document_rows: The row of its document.
            max_length: Tokens in a pair at most, special tokens included.
            multiple_of: Round the padded length up to a multiple of this.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the tokenizer has them, ``token_type_ids``, of shape
            ``(pairs, longest)``, padded on the right.

        Raises:
            DistillationError: If `max_length` leaves no room beside the special tokens.
        """
        room = max_length - self.special
        if room < 1:
            raise DistillationError(
                f"max_length={max_length} leaves no room: a pair has {self.special} special tokens."
            )
        (first, a), (second, b) = self._texts(queries, query_rows), self._texts(documents, document_rows)
        # what transformers calls longest_first: the shorter part keeps up to one half
        shorter = torch.minimum(a, b).clamp(max=room // 2)
        longer = torch.minimum(torch.maximum(a, b), room - shorter)
        a, b = torch.where(a <= b, shorter, longer), torch.where(a <= b, longer, shorter)
        pieces = [self._special(self.before, a), (first, a), self._special(self.between, a), (second, b)]
        pieces.append(self._special(self.after, a))
        width = int((a + b).max()) + self.special if len(a) else 1
        if multiple_of:
            width = -(-width // multiple_of) * multiple_of
        column = torch.arange(width, device=a.device).expand(len(a), width)
        joined = {"input_ids": torch.full_like(column, self.pad_token_id).contiguous()}
        joined["attention_mask"] = torch.zeros_like(joined["input_ids"])
        if self.types is not None:
            joined["token_type_ids"] = torch.full_like(joined["input_ids"], self.pad_token_type_id)
        start = torch.zeros_like(a)
        for place, (tokens, length) in enumerate(pieces):
            inside = (column >= start.unsqueeze(-1)) & (column < (start + length).unsqueeze(-1))
            if tokens.shape[1]:
                source = (column - start.unsqueeze(-1)).clamp(0, tokens.shape[1] - 1)
                joined["input_ids"] = torch.where(inside, tokens.gather(1, source), joined["input_ids"])
            joined["attention_mask"] = joined["attention_mask"].masked_fill(inside, 1)
            if self.types is not None:
                joined["token_type_ids"] = joined["token_type_ids"].masked_fill(inside, self.types[place])
            start = start + length
        return joined

    def _texts(self, batch: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of texts without special ones, moved to the left, and how many there are."""
        ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows].long()
        order = mask.argsort(dim=1, descending=True, stable=True)  # padding may stand on the left
        lengths = (mask.sum(dim=1) - sum(self.alone)).clamp(min=0)
        return ids.gather(1, order)[:, self.alone[0] :], lengths

    @staticmethod
    def _special(tokens: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        row = like.new_tensor(tokens)
        return row.expand(len(like), len(tokens)), torch.full_like(like, len(tokens))


def _runs(mask: list[int]) -> list[slice]:
    """Return the runs of equal values."""
    borders = [0, *(i for i in range(1, len(mask)) if mask[i] != mask[i - 1]), len(mask)]
    return [slice(start, stop) for start, stop in pairwise(borders)]
