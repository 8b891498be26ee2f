"""Words and their sub-words: where each word begins among a model's tokens, in windows of long sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lightning_distilbert.data.encoding import EncodedDataset, EncodedRow, Padding, pad_batch
from lightning_distilbert.data.labels import IGNORED
from lightning_distilbert.data.word_windows import NOWHERE, Frame, WordWindow, word_windows

FILL = {"word": NOWHERE, "labels": IGNORED}  # what stands at padding


class WordDataset(EncodedDataset):
    """Windows of sentences, each with the words that begin at its tokens.

    A sentence that fits is one row. A longer one is several rows that overlap, and each of its words is marked in one
    of them only: there, where it has the most context.

    Args:
        input_ids: The token ids of all rows, one after the other.
        lengths: The number of tokens of each row.
        token_type_ids: Token types, as `input_ids`; None where the tokenizer has none.
        word: For each token the word of its sentence whose first sub-word it is, else -1.
        sentence: The sentence of each row; the rows of one follow each other.
        sentences: The number of words of each sentence.
        span: The words of which a row has tokens: the first, and the one after the last; of shape ``(rows, 2)``.

    Attributes:
        tags: The label of each word, sentence by sentence, -100 for none; None where no sentence has any.
        unseen: The words, counted through all sentences, that begin at no token.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        token_type_ids: np.ndarray | None,
        word: np.ndarray,
        sentence: np.ndarray,
        sentences: np.ndarray,
        span: np.ndarray,
    ) -> None:
        super().__init__(input_ids, lengths, token_type_ids, {"sentence": sentence})
        self.word = word
        self.sentences = sentences
        self.span = span
        self.tags: np.ndarray | None = None
        self._words = np.concatenate([[0], np.cumsum(sentences)])  # where each sentence's words begin among all
        begins = word >= 0
        self._place = np.where(begins, self._words[np.repeat(sentence, lengths)] + word, 0)
        seen = np.zeros(self._words[-1], dtype=bool)
        seen[self._place[begins]] = True
        self.unseen = np.flatnonzero(~seen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return [self[i] for i in index]
        row: EncodedRow = super().__getitem__(index)
        tokens = slice(self._starts[index], self._starts[index + 1])
        row["word"] = self.word[tokens]
        if self.tags is not None:
            row["labels"] = np.where(row["word"] >= 0, self.tags[self._place[tokens]], IGNORED)
            row["unseen"] = self._unseen_of(index)
        return row

    def _unseen_of(self, index: int) -> np.ndarray:
        """Return sentence, word and label of the words that no token stands for, with the first row of each."""
        sentence = self.extras["sentence"][index]
        if index and self.extras["sentence"][index - 1] == sentence:
            return np.zeros((0, 3), dtype=np.int64)
        first, last = np.searchsorted(self.unseen, self._words[sentence : sentence + 2])
        places = self.unseen[first:last]
        assert self.tags is not None
        labels = self.tags[places]
        found = np.stack([np.full_like(places, sentence), places - self._words[sentence], labels], axis=1)
        return found[labels != IGNORED]


class BySentence(Dataset):
    """The rows of a `WordDataset` sentence by sentence, for loaders that must not part them.

    Args:
        data: The rows.
        words: The words of each sentence.
    """

    def __init__(self, data: WordDataset, words: Sequence[Sequence[str]]) -> None:
        self.data = data
        self.words = words
        self._rows = np.searchsorted(data.extras["sentence"], np.arange(len(words) + 1))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.data[list(range(self._rows[index], self._rows[index + 1]))]
        return {"rows": rows, "words": list(self.words[index])}


@dataclass(frozen=True)
class WordBatches:
    """Makes batches of the rows of a `WordDataset` or of `BySentence`. It is cheap to send to a loader's workers.

    Beside what `pad_batch` gives, a batch has ``word`` and ``labels``, of shape ``(batch, sequence)``,
    ``first_subword``, which is True where a word begins, ``unseen``, of shape ``(words, 3)``: sentence, word and label
    of labelled words that no token stands for, and ``words`` where rows come by sentence.

    Attributes:
        padding: The padding of the tokenizer.
        multiple_of: Round the padded length up to a multiple of this.
        teacher: The padding of a teacher's tokenizer, if it is another.
    """

    padding: Padding
    multiple_of: int | None = None
    teacher: Padding | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of some rows."""
        words = [row["words"] for row in rows if "words" in row]
        if words:
            rows = [window for row in rows for window in row["rows"]]
        own = (*FILL, "unseen")
        plain = [{name: value for name, value in row.items() if name not in own} for row in rows]
        batch = pad_batch(plain, self.padding, self.multiple_of, self.teacher)
        width = batch["input_ids"].shape[1]
        for name, fill in FILL.items():
            if name in rows[0]:
                values = np.full((len(rows), width), fill, dtype=np.int64)
                for target, row in zip(values, rows, strict=True):
                    size = len(row[name])
                    target[width - size if self.padding.padding_side == "left" else 0 :][:size] = row[name]
                batch[name] = torch.from_numpy(values)
        batch["first_subword"] = batch["word"] >= 0
        if "unseen" in rows[0]:
            batch["unseen"] = torch.from_numpy(np.concatenate([row["unseen"] for row in rows]))
        return {**batch, "words": words} if words else batch


def encode_words(
    tokenizer: Any,
    sentences: Sequence[Sequence[str]],
    max_length: int = 128,
    stride: int | None = None,
    name: str = "words",
) -> WordDataset:
    """Tokenise sentences of words and find each word's first sub-word.

    The words are joined by blanks, with one before the first: so a byte-level tokenizer (RoBERTa's) sees every word
    after a blank, as with ``add_prefix_space``, whatever it was saved with, and a word's tokens are those that
    ``is_split_into_words`` gives. Offsets tell which token belongs to which word.

    Args:
        tokenizer: A fast transformers tokenizer.
        sentences: The words of each.
        max_length: The tokens of a window at most, special ones included.
        stride: The tokens that two windows of one sentence share; None is a quarter of what fits.
        name: What the progress bar says.

    Returns:
        The rows. Words that are nothing to the tokenizer, such as a control character, begin at no token; they are in
        `unseen`.

    Raises:
        DistillationError: If the tokenizer gives no offsets, or the windows have no room for a token of their own.

    Example:
        >>> from transformers import BertTokenizer
        >>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "in", "ro", "##me"]
        >>> tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})
        >>> row = encode_words(tokenizer, [["In", "Rome"]])[0]
        >>> row["input_ids"].tolist(), row["word"].tolist()
        ([2, 5, 6, 7, 3], [-1, 0, 1, -1, -1])
    """
    frame = Frame.of(tokenizer)
    found: list[WordWindow] = []
    with tqdm(total=len(sentences), desc=f"tokenise {name}", unit=" sentences", delay=1, leave=False) as bar:
        for windows in word_windows(tokenizer, frame, sentences, max_length, stride):
            found += windows
            bar.update()
    flat = np.concatenate([window.ids for window in found]) if found else np.zeros(0, dtype=np.int32)
    return WordDataset(
        flat,
        np.array([len(window.ids) for window in found], dtype=np.int64),
        None if frame.token_type is None else np.full(len(flat), frame.token_type, dtype=np.int8),
        np.concatenate([window.word for window in found]) if found else np.zeros(0, dtype=np.int64),
        np.array([window.sentence for window in found], dtype=np.int64),
        np.array([len(sentence) for sentence in sentences], dtype=np.int64),
        np.array([window.span for window in found], dtype=np.int64).reshape(-1, 2),
    )
