"""Data for question answering: questions, the texts that answer them, and where."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.readers import Row, column, describe, texts
from lightning_distilbert.data.squad import Answer, find_answer, open_question_splits, parse_answers, read_questions
from lightning_distilbert.data.text_files import TEXT_SUFFIXES, kind_of_text
from lightning_distilbert.data.windows import ByExample, Windows, encode_windows, label_windows, pad_windows
from lightning_distilbert.errors import DistillationError, check_choice

NO_LABEL, NO_ANSWER = (-1, -1), (0, 0)
Answers = list[Answer] | None


class QuestionAnsweringData(TextData):
    """Questions with a context each, and where in it the answer stands.

    A context that is longer than a window is read in several windows, which overlap. Batches hold ``input_ids``,
    ``attention_mask``, ``token_type_ids`` where the tokenizer gives them, ``span_mask`` (boolean, of shape
    ``(batch, sequence)``: the tokens of the context, and the first token, which stands for no answer) and
    ``start_positions`` and ``end_positions`` (int64 of shape ``(batch,)``; -100 in a row without a label). Those for
    evaluation also hold ``example``, ``offsets``, ``context`` and ``answers``, from which the task makes texts.

    A question whose answers are an empty list has no answer in its context (SQuAD v2); one whose answers are None has
    no label, and only a teacher tells what it says. A window without the whole answer is labelled as one without an
    answer, as in BERT's script and in transformers. Training takes the first of several answers, evaluation all.

    Args:
        source: A folder with ``train-v1.1.json``, ``dev-v1.1.json`` or the like, a file of SQuAD's JSON, or anything
            that `lightning_distilbert.data.open_splits` takes, with one row per question; a split may also be a list
            of ``(question, context)``.
        question: The column of the question.
        context: The column of the context.
        answers: The column of the answers, each a ``text`` and its ``answer_start``, in SQuAD's layout or that of
            `datasets`; None for data without answers, which only distillation can learn from.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Windows in a training batch on one device.
        eval_batch_size: Windows in another batch; None: twice `batch_size`.
        max_length: Tokens of a window at most, the question included; never more than tokenizer and student take.
        doc_stride: Tokens that a window shares with the one before it; None takes the task's, or 128.
        max_question_length: Tokens of a question at most; None takes the task's, or 64.
        on_bad_answer: What to do with training rows whose answer does not stand in the context where it says:
            ``"skip"`` leaves them out with a warning, ``"error"`` stops. Evaluation needs the texts of answers only.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training rows.
        unlabelled: Further training questions without answers, which the teacher alone teaches: a table or JSON lines
            with the columns of question and context, SQuAD's JSON, rows, pairs of question and context, or another
            source with a training split. Plain text has no questions and is refused.

    Raises:
        DistillationError: If an option, a column or a row is bad.

    Example:
        >>> from transformers import BertTokenizer
        >>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "is", "me"]
        >>> words = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
        >>> row = {"question": "who", "context": "is me", "answers": [{"text": "me", "answer_start": 3}]}
        >>> data = QuestionAnsweringData({"train": [row]}, tokenizer=words)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["input_ids"].tolist(), batch["start_positions"].tolist()
        ([[2, 5, 3, 6, 7, 3]], [4])
    """

    def __init__(
        self,
        source: Any,
        question: str = "question",
        context: str = "context",
        answers: str | None = "answers",
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 384,
        doc_stride: int | None = None,
        max_question_length: int | None = None,
        on_bad_answer: Literal["skip", "error"] = "skip",
        num_workers: int = 0,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
        unlabelled: Any = None,
    ) -> None:
        super().__init__(
            source=source,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            num_workers=num_workers,
            pad_to_multiple_of=pad_to_multiple_of,
            seed=seed,
            unlabelled=unlabelled,
        )
        check_choice("QuestionAnsweringData(on_bad_answer=...)", on_bad_answer, ("skip", "error"))
        for name, value, least in (("doc_stride", doc_stride, 0), ("max_question_length", max_question_length, 1)):
            if value is not None and value < least:
                raise DistillationError(f"{name}={value}: it has to be {least} or more.")
        self.question = question
        self.context = context
        self.answers = answers
        self.doc_stride = doc_stride
        self.max_question_length = max_question_length
        self.on_bad_answer = on_bad_answer

    def find_splits(self) -> dict[str, Any]:
        """Find the splits, also under the names of SQuAD's files."""
        return open_question_splits(self.source)

    def read_split(self, split: str) -> list[Row]:
        """Read a split's questions."""
        return read_questions(self.split_source(split))

    def window_options(self) -> dict[str, Any]:
        """Return how contexts are cut into windows: as the options say, or as the task answers."""
        task = getattr(self.attached_module(), "task", None)
        defaults = {"doc_stride": 128, "max_question_length": 64}
        chosen = {name: getattr(self, name) for name in defaults}
        return {
            name: getattr(task, name, default) if chosen[name] is None else chosen[name]
            for name, default in defaults.items()
        }

    def depends_on(self) -> Any:
        """Return what the encoded rows depend on: the tokenizer and the windows."""
        return super().depends_on(), self.window_options()

    def encode_split(self, split: str) -> Windows:
        """Read and tokenise one split, with its answers as places in each window."""
        questions: list[str] = []
        contexts: list[str] = []
        answers: list[Answers] = []
        if split == "train" and self.teacher_tokenizer() is not None:
            raise DistillationError(
                "The teacher has another tokenizer than the student. An answer is told by the places of its tokens, so "
                "that both have to share one: build the student from this teacher, or take another teacher."
            )
        if self.has_source(split):
            questions, contexts, answers = self._labelled(split)
        if split == "train" and self.unlabelled is not None:
            rows = self._unlabelled_rows()
            questions += texts(rows, self.question, "unlabelled")
            contexts += texts(rows, self.context, "unlabelled")
            answers += [None] * len(rows)
        windows = encode_windows(
            self.get_tokenizer(), questions, contexts, self.effective_max_length(), **self.window_options(), name=split
        )
        if split == "train":
            self.check_teacher_length(windows.lengths)
        if split == "predict" or all(found is None for found in answers):
            return windows.without_texts() if split == "train" else windows
        starts, ends, lost = label_windows(windows, _spans(answers, contexts))
        windows.extras |= {"start_positions": starts, "end_positions": ends}
        if split != "train":
            windows.answers = [None if found is None else [text for text, _ in found] for found in answers]
            return windows
        if lost:
            rank_zero_warn(
                f"{self.where(split)}: {len(lost)} answers are in no window as a whole; these questions do not count "
                f"for the task. The first: {questions[lost[0]]!r}. Raise doc_stride or max_length."
            )
        return windows.without_texts()

    def _labelled(self, split: str) -> tuple[list[str], list[str], list[Answers]]:
        rows, where = self.read_split(split), self.where(split)
        questions, contexts = texts(rows, self.question, where), texts(rows, self.context, where)
        values = None
        if self.answers is not None:
            values = column(rows, self.answers, where, optional=split == "predict")
        answers = [
            parse_answers(value, f"{where}, row {number}")
            for number, value in enumerate(values or [None] * len(rows), 1)
        ]
        if split == "predict":
            return questions, contexts, answers
        self._tell(answers, split, where)
        kept = self._without_bad(questions, contexts, answers, where) if split == "train" else range(len(rows))
        return [questions[i] for i in kept], [contexts[i] for i in kept], [answers[i] for i in kept]

    def _tell(self, answers: Sequence[Answers], split: str, where: str) -> None:
        """Say what rows will not count, or not as a user may think."""
        missing = sum(found is None for found in answers)
        if missing and self.answers is not None:
            use = "count for distillation and not for the task" if split == "train" else "do not count in the metrics"
            rank_zero_warn(f"{where}: {missing} of {len(answers)} questions have no label; they {use}.")
        task = getattr(self.attached_module(), "task", None)
        impossible = sum(found == [] for found in answers)
        if impossible and getattr(task, "no_answer", True) is False:
            rank_zero_warn(
                f"{where}: {impossible} of {len(answers)} questions have no answer in their context, and the task will "
                "answer them all the same; they do not count in its metrics. For SQuAD v2 take "
                "QuestionAnswering(no_answer=True)."
            )

    def _without_bad(
        self, questions: Sequence[str], contexts: Sequence[str], answers: Sequence[Answers], where: str
    ) -> list[int]:
        """Return the rows whose answer stands in the context where it says, or that have none."""
        bad = [row for row, found in enumerate(answers) if found and find_answer(found, contexts[row]) is None]
        if bad:
            first = bad[0]
            text, start = (answers[first] or [("", 0)])[0]
            there = contexts[first][max(start, 0) :][: max(len(text), 1)]
            message = (
                f"{where}: {len(bad)} of {len(answers)} answers do not stand in their context where answer_start says. "
                f"The first is row {first + 1}, {questions[first]!r}: {text!r} at {start}, where the context has "
                f"{there!r}."
            )
            if self.on_bad_answer == "error":
                raise DistillationError(f"{message} Mend the rows, or leave them out with on_bad_answer='skip'.")
            rank_zero_warn(f"{message} They are left out.")
        if len(bad) == len(answers):
            raise DistillationError(f"{where}: no row is left to train on, since no answer stands in its context.")
        return sorted(set(range(len(answers))) - set(bad))

    def _unlabelled_rows(self) -> list[Row]:
        splits = open_question_splits(self.unlabelled)
        file = splits.get("train")
        if isinstance(file, (str, Path)) and kind_of_text(Path(file)) in TEXT_SUFFIXES:
            raise DistillationError(
                f"unlabelled: {file} is plain text, and a question is asked of a context. Give a table or JSON lines "
                f"with the columns {self.question!r} and {self.context!r}, SQuAD's JSON, or pairs in memory."
            )
        if "train" not in splits:
            raise DistillationError(
                f"unlabelled: {describe(self.unlabelled)} has only the splits {list(splits)}. Name the file or pass "
                "the rows that are meant."
            )
        return read_questions(splits["train"])

    def _collate(self, train: bool = False) -> Any:
        return functools.partial(
            pad_windows, tokenizer=Padding.of(self.get_tokenizer()), multiple_of=self.pad_to_multiple_of
        )

    def _ordered_loader(self, dataset: Any) -> DataLoader:
        return super()._ordered_loader(ByExample(dataset))


def _spans(answers: Sequence[Answers], contexts: Sequence[str]) -> np.ndarray:
    """Return begin and end of the answer to each question, as `label_windows` takes them."""
    spans = []
    for found, context in zip(answers, contexts, strict=True):
        spans.append(NO_LABEL if found is None else NO_ANSWER if not found else find_answer(found, context) or NO_LABEL)
    return np.array(spans, dtype=np.int64).reshape(-1, 2)
