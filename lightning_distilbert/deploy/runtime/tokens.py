"""Texts as tokens, by the tokenizer.json of an artefact alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_distilbert.errors import DistillationError, require


class Encoded:
    """What a tokenizer made of some texts, in the form that transformers' fast tokenizers give.

    Attributes:
        encodings: One for each text, or several where a long one overflows.
    """

    def __init__(self, encodings: list[Any], samples: list[int], typed: bool) -> None:
        self.encodings = encodings
        self._samples = samples
        self._typed = typed

    def __getitem__(self, name: str) -> list[int]:
        if name != "overflow_to_sample_mapping":
            raise KeyError(name)
        return self._samples

    def __contains__(self, name: object) -> bool:
        return name == "token_type_ids" and self._typed


class TextTokenizer:
    """The tokenizer of an artefact. It is called as transformers' fast tokenizers are, as far as this package does it.

    Args:
        folder: The artefact, with tokenizer.json and tokenizer_config.json.
        typed: Whether the model takes ``token_type_ids``.

    Attributes:
        max_length: Tokens of a text at most, special ones included.
        mask_token: The mask token, or None.
        padding: The ids of the padding of ``input_ids``, ``token_type_ids`` and ``attention_mask``.
        pad_left: Whether the padding is on the left.

    Raises:
        DistillationError: If the files are damaged, or name no padding token.
    """

    is_fast = True

    def __init__(self, folder: Path, typed: bool) -> None:
        tokenizers = require("tokenizers", "onnx")
        path = folder / "tokenizer.json"
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise DistillationError(
                f"The tokenizer of {str(folder)!r} cannot be read ({error}). Export the student again."
            ) from error
        self._backend.no_padding()
        self._typed = typed
        self._direction = config.get("truncation_side", "right")
        # how a text is cut is a setting of the tokenizer, and threads may use one artefact together
        self._lock = threading.Lock()
        self.max_length = int(config.get("model_max_length") or 10**9)
        self.mask_token = _token(config.get("mask_token"))
        self.pad_left = config.get("padding_side") == "left"
        pad = self.id_of(_token(config.get("pad_token")))
        if pad is None:
            raise DistillationError(
                f"{folder / 'tokenizer_config.json'} names no padding token that it knows. Export the student again."
            )
        self.padding = {
            "input_ids": pad,
            "token_type_ids": int(config.get("pad_token_type_id", 0)),
            "attention_mask": 0,
        }

    def id_of(self, token: str | None) -> int | None:
        """Return the number of a token, or None if there is no such token."""
        number: int | None = None if token is None else self._backend.token_to_id(token)
        return number

    def num_special_tokens_to_add(self, pair: bool) -> int:
        """Return how many tokens stand around a text, or around and between a pair."""
        return int(self._backend.num_special_tokens_to_add(pair))

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: str | None = None,
        max_length: int = 0,
        stride: int = 0,
        **_: Any,
    ) -> Encoded:
        """Tokenise texts, or pairs of texts.

        Args:
            texts: The texts, or the first of each pair.
            pairs: The second of each pair.
            add_special_tokens: Whether the special tokens are put around them.
            truncation: ``"longest_first"`` cuts the longer part of a pair first, ``"only_second"`` its second part
                alone; None cuts nothing.
            max_length: Tokens kept at most where texts are cut.
            stride: The tokens that the part cut off begins with again.

        Returns:
            The encodings, those cut off after the one that they were cut off from.
        """
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        with self._lock:
            if truncation is None:
                self._backend.no_truncation()
            else:
                self._backend.enable_truncation(
                    max_length, stride=stride, strategy=truncation, direction=self._direction
                )
            found = self._backend.encode_batch(inputs, add_special_tokens=add_special_tokens)
        # those cut off at the end of a plain text are of no use
        parts = [[one, *one.overflowing] if truncation == "only_second" else [one] for one in found]
        samples = [place for place, part in enumerate(parts) for _ in part]
        return Encoded([one for part in parts for one in part], samples, self._typed)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> list[dict[str, np.ndarray]]:
        """Tokenise texts, or pairs of texts, and cut them.

        Args:
            texts: The texts, or the first of each pair.
            pairs: The second of each pair.
            max_length: Tokens kept of each at most, special ones included.

        Returns:
            ``input_ids`` of each, and ``token_type_ids`` where the model takes them.

        Raises:
            DistillationError: If `max_length` leaves no room beside the special tokens.
        """
        special = self.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise DistillationError(
                f"max_length={max_length} leaves no room: the tokenizer adds {special} special tokens."
            )
        encoded = self(texts, pairs, truncation="longest_first", max_length=max_length)
        return [self.row(one.ids, one.type_ids) for one in encoded.encodings]

    def row(self, ids: Any, types: Any) -> dict[str, np.ndarray]:
        """Return what a model takes of a text: ``input_ids``, and ``token_type_ids`` where it takes them."""
        row = {"input_ids": np.asarray(ids, dtype=np.int64)}
        return row | {"token_type_ids": np.asarray(types, dtype=np.int64)} if self._typed else row

    def pad(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Make a batch of rows, padded to the longest of them.

        Args:
            rows: Of `row`.

        Returns:
            ``input_ids`` and ``attention_mask``, and ``token_type_ids`` where rows have them, all of shape
            ``(batch, sequence)``.
        """
        longest = max(1, *(len(row["input_ids"]) for row in rows))
        batch = {}
        for name in [*rows[0], "attention_mask"]:
            values = np.full((len(rows), longest), self.padding[name], dtype=np.int64)
            for target, row in zip(values, rows, strict=True):
                size = len(row["input_ids"])
                target[self.inside(size, longest)] = 1 if name == "attention_mask" else row[name]
            batch[name] = values
        return batch

    def inside(self, size: int, width: int) -> slice:
        """Return where a row of so many tokens stands in a batch of this width."""
        return slice(width - size, width) if self.pad_left else slice(0, size)

    def write(self, tokens: np.ndarray) -> str:
        """Return the text of some tokens, without the special ones and without white space around it.

        Args:
            tokens: int64 of shape ``(tokens,)``.
        """
        return str(self._backend.decode(tokens.tolist(), skip_special_tokens=True)).strip()

    def decode(self, token: int) -> str:
        """Return the text of a single token."""
        return str(self._backend.decode([token], skip_special_tokens=False)).strip()


def _token(value: Any) -> str | None:
    """Return a token that tokenizer_config.json names, alone or with its options."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
