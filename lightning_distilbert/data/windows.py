"""Long contexts as overlapping windows of tokens, with the place of each token in the text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lightning_distilbert.data.context_windows import Window, context_windows
from lightning_distilbert.data.encoding import EncodedDataset, EncodedRow, pad_batch
from lightning_distilbert.data.labels import IGNORED
from lightning_distilbert.errors import DistillationError


class Windows(EncodedDataset):
    """Encoded pairs of a question and a part of its context; a long context has several rows, one after the other.

    Args:
        input_ids: The token ids of all windows, one after the other.
        lengths: The number of tokens of each, of shape ``(windows,)``.
        token_type_ids: Token types, as `input_ids`; None where the tokenizer has none.
        extras: ``example``, the place of the question, and ``context_tokens``, of shape ``(windows, 2)``: which tokens
            of the window are of the context, and further values of each window.
        offsets: Begin and end of each token in the text that it is of, in characters, of shape ``(tokens, 2)``.
        contexts: The context of each question.
        answers: The texts of the true answers of each question; None for a question without a label.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        token_type_ids: np.ndarray | None,
        extras: Mapping[str, np.ndarray],
        offsets: np.ndarray | None = None,
        contexts: Sequence[str] = (),
        answers: Sequence[list[str] | None] | None = None,
    ) -> None:
        super().__init__(input_ids, lengths, token_type_ids, extras)
        self.offsets = offsets
        self.contexts = contexts
        self.answers = answers

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return [self[i] for i in index]
        row: EncodedRow = super().__getitem__(index)
        if self.offsets is not None:
            row["offsets"] = self.window_offsets(index)
            row["context"] = self.contexts[row["example"]]
            if self.answers is not None:
                row["answers"] = self.answers[row["example"]]
        return row

    def without_texts(self) -> Windows:
        """Return the windows as training needs them: what texts are made of stays behind."""
        return Windows(self.input_ids, self.lengths, self.token_type_ids, self.extras)

    def window_offsets(self, index: int) -> np.ndarray:
        """Return begin and end of each token of a window, of shape ``(tokens, 2)``."""
        assert self.offsets is not None
        return self.offsets[self._starts[index] : self._starts[index + 1]]


class ByExample(Dataset):
    """The windows of each question together, so that a batch of questions holds all that is needed to answer them."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.bounds = np.flatnonzero(np.diff(windows.extras["example"], prepend=-1, append=len(windows)))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> list[EncodedRow]:
        rows: list[EncodedRow] = self.windows[list(range(self.bounds[index], self.bounds[index + 1]))]
        return rows


def encode_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int = 384,
    doc_stride: int = 128,
    max_question_length: int = 64,
    name: str = "questions",
    shrink: bool = False,
) -> Windows:
    """Tokenise questions with their contexts, each long context as several windows, with a progress bar.

    Args:
        tokenizer: A fast transformers tokenizer: it knows the place of each token in the text.
        questions: The questions.
        contexts: The context of each.
        max_length: Tokens of a window at most, question and special tokens included.
        doc_stride: Tokens that a window shares with the one before it, as transformers counts. (In BERT's own script it
            is the number of tokens that the window moves on.)
        max_question_length: Tokens of a question at most; what is beyond is cut off.
        name: What the progress bar says.
        shrink: Where windows have no room for more of a context than they share, let them share less.

    Returns:
        The windows, in the order of the questions.

    Raises:
        DistillationError: If the tokenizer is slow, or a context needs several windows and these have no room for more
            of it than they share.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DistillationError(
            f"A {type(tokenizer).__name__} does not tell where in the text its tokens are, so that answers could not "
            "be found there. Use a fast tokenizer (one with a tokenizer.json)."
        )
    found: list[Window] = []
    cut = 0
    with tqdm(total=len(questions), desc=f"tokenise {name}", unit=" rows", delay=1, leave=False) as bar:
        for part, rows, shortened in context_windows(
            tokenizer, questions, contexts, max_length, doc_stride, max_question_length, name, shrink
        ):
            found += part
            cut += shortened
            bar.update(rows)
    if cut:
        rank_zero_warn(f"{name}: {cut} questions of more than {max_question_length} tokens were cut.")
    typed = bool(found) and found[0].types is not None
    return Windows(
        np.concatenate([window.ids for window in found]) if found else np.zeros(0, dtype=np.int32),
        np.array([len(window.ids) for window in found], dtype=np.int64),
        np.concatenate([window.types for window in found if window.types is not None]) if typed else None,
        {
            "example": np.array([window.example for window in found], dtype=np.int64),
            "context_tokens": np.array([window.context for window in found], dtype=np.int64).reshape(-1, 2),
        },
        np.concatenate([window.offsets for window in found]) if found else np.zeros((0, 2), dtype=np.int32),
        contexts,
    )


def label_windows(windows: Windows, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Find the tokens where the answer of each window starts and ends.

    A window that does not hold the whole answer is labelled with its first token, which stands for no answer: so do
    BERT's script and transformers, for SQuAD v1.1 as for v2.

    Args:
        windows: The windows, with offsets.
        spans: Begin and end of the answer to each question, in characters of its context, of shape ``(questions, 2)``:
            ``(-1, -1)`` for a question without a label, and equal numbers for one without an answer.

    Returns:
        The places of the first and the last token in each window, int64 of shape ``(windows,)``, -100 without a label,
        and the questions whose answer is in no window as a whole; these have no label either.
    """
    starts, ends = np.full((2, len(windows)), IGNORED, dtype=np.int64)
    lost = []
    bounds = ByExample(windows).bounds
    for first, after in itertools.pairwise(bounds):
        begin, end = spans[example := windows.extras["example"][first]]
        if begin < 0:
            continue
        if begin < end:
            rows = range(first, after)
            found = [_covered(windows, row, begin, end) for row in rows]
            touched = [edges for edges in found if edges is not None]
            # the outermost characters that any token has: not all characters of an answer need to be in one
            whole = (min(e[2] for e in touched), max(e[3] for e in touched)) if touched else None
            inside = {row: edges for row, edges in zip(rows, found, strict=True) if edges and edges[2:] == whole}
            if not inside:
                lost.append(int(example))
                continue
        else:
            inside = {}
        starts[first:after] = ends[first:after] = 0
        for row, edges in inside.items():
            starts[row], ends[row] = edges[:2]
    return starts, ends, lost


def _covered(windows: Windows, row: int, begin: int, end: int) -> tuple[int, int, int, int] | None:
    """Return the first and last token of a window that overlap with some characters, and what these tokens span."""
    low, high = windows.extras["context_tokens"][row]
    offsets = windows.window_offsets(row)[low:high]
    # a token without a character (an empty piece between words) overlaps with nothing
    hit = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end) & (offsets[:, 0] < offsets[:, 1]))
    if not len(hit):
        return None
    first, last = hit[0], hit[-1]
    return int(low + first), int(low + last), int(offsets[first, 0]), int(offsets[last, 1])


def pad_windows(
    rows: Sequence[EncodedRow | list[EncodedRow]], tokenizer: Any, multiple_of: int | None = None, teacher: Any = None
) -> dict[str, Any]:
    """Make a batch of windows.

    Args:
        rows: Rows of `Windows`, or lists of them.
        tokenizer: A tokenizer, or its `Padding`.
        multiple_of: Round the padded length up to a multiple of this.
        teacher: Not used: a teacher of another tokenizer sees other windows.

    Returns:
        What `pad_batch` gives, and ``span_mask``, boolean of shape ``(batch, sequence)``: the tokens of the context,
        and the first token, which stands for no answer. Where rows have them, ``offsets`` is of shape
        ``(batch, sequence, 2)``, and ``context`` and ``answers`` are lists.
    """
    flat = [row for item in rows for row in (item if isinstance(item, list) else [item])]
    apart = ("offsets", "context", "answers", "context_tokens")
    batch = pad_batch([{k: v for k, v in row.items() if k not in apart} for row in flat], tokenizer, multiple_of)
    shape = batch["input_ids"].shape
    mask = np.zeros(shape, dtype=bool)
    offsets = np.zeros((*shape, 2), dtype=np.int64)
    for place, row in enumerate(flat):
        length = len(row["input_ids"])
        # padding on the left moves all places to the right
        shift = shape[1] - length if tokenizer.padding_side == "left" else 0
        begin, end = row["context_tokens"]
        mask[place, shift] = True
        mask[place, shift + begin : shift + end] = True
        if "offsets" in row:
            offsets[place, shift : shift + length] = row["offsets"]
        for name in ("start_positions", "end_positions"):
            if name in row and row[name] != IGNORED:
                batch[name][place] += shift
    batch["span_mask"] = torch.from_numpy(mask)
    if "offsets" in flat[0]:
        batch["offsets"] = torch.from_numpy(offsets)
    for name in ("context", "answers"):
        if name in flat[0]:
            batch[name] = [row[name] for row in flat]
    return batch
