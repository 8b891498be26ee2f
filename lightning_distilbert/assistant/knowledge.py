"""What an assistant can look up: passages that are found by their meaning, or not found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_distilbert.data.readers import read_rows
from lightning_distilbert.data.writers import write_rows
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.calibration import choose_threshold
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.retrieval.encode import encode_corpus, open_encoder
from lightning_distilbert.retrieval.search import search, similarity_of

FILE, VECTORS = "passages.jsonl", "passages.npy"
THRESHOLD = "knowledge"
UNTRIED = 0.5  # the least cosine where no threshold was chosen


@dataclass(frozen=True)
class Passage:
    """A text that answers something.

    Attributes:
        text: The text.
        source: What it is called when an answer names its source.
        title: Its heading, or the question that it answers; searched with the text.
        answer: What to say, where that is written already, as in a FAQ; None leaves it to a reader, or is the text.
    """

    text: str
    source: str
    title: str = ""
    answer: str | None = None

    @property
    def searched(self) -> str:
        """What is compared with a question."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class Found:
    """A passage and how near it is to a question, a cosine."""

    passage: Passage
    score: float


class Knowledge:
    """Passages, and an encoder that finds the ones nearest to a question.

    Args:
        encoder: A `DistillationModule` of the task `Retrieval`, the folder of one, or any object whose ``predict``
            takes texts and gives vectors.
        passages: The passages, as `Passage` or as dicts of ``text`` and, where wanted, ``title``, ``answer`` and
            ``source`` (or ``_id``; the number otherwise). Of equal ones the first is kept.
        threshold: The score (a cosine, or a dot product if the encoder says so) below which nothing is known. None
            takes the one that was saved with the encoder, or 0.5.
        vectors: A file for the vectors of the passages, ``.npy``, which is made anew where the passages have changed;
            None keeps them in memory.

    Attributes:
        passages: The passages, each once.
        threshold: As above.

    Raises:
        DistillationError: If there is no passage, or one has no text.

    Example:
        >>> class Letters:
        ...     def predict(self, texts):
        ...         return [[float(text.count(letter)) for letter in "abc"] for text in texts]
        >>> knowledge = Knowledge(Letters(), [{"text": "aaa"}, {"text": "bbb", "source": "the bees"}])
        >>> knowledge.search("b")[0]
        Found(passage=Passage(text='bbb', source='the bees', title='', answer=None), score=1.0)
    """

    def __init__(
        self,
        encoder: Any,
        passages: Sequence[Passage | Mapping[str, Any]],
        threshold: float | None = None,
        vectors: str | Path | None = None,
    ) -> None:
        self.passages, self._kept = _unique([_passage(row, number) for number, row in enumerate(passages, start=1)])
        if not self.passages:
            raise DistillationError("The knowledge is empty: give it at least one passage.")
        self.encoder = open_encoder(encoder) if isinstance(encoder, (str, Path, DistillationModule)) else encoder
        saved = getattr(self.encoder, "thresholds", {}).get(THRESHOLD)
        self.threshold = next((value for value in (threshold, saved) if value is not None), UNTRIED)
        texts = [passage.searched for passage in self.passages]
        self._vectors = (
            encode_corpus(self.encoder, texts, output=vectors, overwrite=True, name="passages")
            if isinstance(self.encoder, DistillationModule)
            else self._embed(texts)
        )

    @classmethod
    def open(cls, folder: str | Path, passages: str | Path | None = None, device: str | None = None) -> Knowledge:
        """Open a folder that `save` wrote, or any saved retrieval student with a file of passages.

        The vectors are kept in the folder, as ``passages.npy``, if it can be written to. Of several processes that open
        it at once one makes them, and the others wait.

        Args:
            folder: The folder of the student.
            passages: The file of passages; None is ``passages.jsonl`` in the folder.
            device: Where to put the student; None is the graphics processor if there is one.

        Raises:
            DistillationError: If one of the two is missing, or something in them is bad.
        """
        folder = Path(folder).expanduser()
        file = Path(passages).expanduser() if passages is not None else folder / FILE
        encoder = open_encoder(folder, device)
        if not file.is_file():
            raise DistillationError(
                f"There are no passages {str(file)!r} to look things up in. Name a file of rows with a text: "
                "passages=..., or --passages."
            )
        kept = folder / VECTORS if passages is None and os.access(folder, os.W_OK) else None
        return cls(encoder, read_rows(file), vectors=kept)

    def save(self, folder: str | Path) -> Path:
        """Save the encoder as a student, with the threshold, and the passages beside it.

        Args:
            folder: The folder.

        Returns:
            The folder.

        Raises:
            DistillationError: If the encoder is no `DistillationModule`.
        """
        if not isinstance(self.encoder, DistillationModule):
            raise DistillationError(f"A {type(self.encoder).__name__} cannot be saved as a student.")
        self.encoder.thresholds[THRESHOLD] = self.threshold
        target = self.encoder.save_student(folder)
        names = ("text", "title", "answer", "source")
        write_rows(({name: getattr(row, name) for name in names} for row in self.passages), target / FILE)
        return target

    def search(self, question: str, top_k: int = 3) -> list[Found]:
        """Find the passages nearest to a question, whatever their score.

        Args:
            question: The question.
            top_k: How many at most.
        """
        return self.search_all([question], top_k)[0]

    def search_all(self, questions: Sequence[str], top_k: int = 3) -> list[list[Found]]:
        """Find the passages nearest to each question.

        Args:
            questions: The questions.
            top_k: How many for each at most.
        """
        scores, places = search(self._embed(questions), self._vectors, top_k, similarity_of(self.encoder))
        return [
            [Found(self.passages[place], score) for score, place in zip(*row, strict=True)]
            for row in zip(scores.tolist(), places.tolist(), strict=True)
        ]

    def choose_threshold(self, questions: Sequence[str], sources: Sequence[str | None], balanced: bool = True) -> float:
        """Choose on validation questions below which score nothing is known, and keep it.

        Args:
            questions: Questions that no one will be asked to judge the assistant by.
            sources: The source of the passage that answers each; None for a question that none answers.
            balanced: Whether both kinds of questions count as much together; see
                `lightning_distilbert.functional.calibration.choose_threshold`.

        Returns:
            The threshold.

        Raises:
            DistillationError: If there are not questions of both kinds, or a source is unknown.
        """
        if len(questions) != len(sources):
            raise DistillationError(f"There are {len(questions)} questions and {len(sources)} sources: one for each.")
        if unknown := [source for source in sources if source is not None and source not in self._kept]:
            raise DistillationError(f"There is no passage of the source {unknown[0]!r}: None stands for no answer.")
        wanted = [None if source is None else self._kept[source] for source in sources]
        best = [found[0] for found in self.search_all(questions, 1)]
        right = [source is not None and found.passage in source for found, source in zip(best, wanted, strict=True)]
        _, self.threshold = choose_threshold(
            torch.tensor([found.score for found in best], dtype=torch.float64),
            torch.tensor(right),
            torch.tensor([source is not None for source in wanted]),
            balanced,
        )
        return self.threshold

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self.encoder.predict(list(texts)), dtype=np.float32)


def _passage(row: Passage | Mapping[str, Any], number: int) -> Passage:
    if isinstance(row, Passage):
        return row
    if not isinstance(row, Mapping):
        raise DistillationError(f"Passage {number} is a {type(row).__name__}: it has to be a dict with a text.")
    told = {name: row.get(name) or "" for name in ("text", "title", "answer")}
    for name, value in told.items():
        if not isinstance(value, str):
            raise DistillationError(f"Passage {number}: {name} is {str(value)[:60]!r}, which is no text.")
    text, title, answer = (value.strip() for value in told.values())
    if not text and not (title and answer):
        raise DistillationError(f"Passage {number} has no text: {str(dict(row))[:60]}. Mend or drop it.")
    source = row.get("source", row.get("_id"))
    return Passage(text, str(number if source in (None, "") else source), title, answer or None)


def _unique(passages: Sequence[Passage]) -> tuple[list[Passage], dict[str, set[Passage]]]:
    """Return the passages, each once, and under each source those that stand for its own."""
    kept: dict[tuple[str, str | None], Passage] = {}
    sources: dict[str, set[Passage]] = {}
    for passage in passages:
        first = kept.setdefault((passage.searched, passage.answer), passage)
        sources.setdefault(passage.source, set()).add(first)
    if len(kept) < len(passages):
        rank_zero_warn(
            f"The knowledge holds {len(passages) - len(kept)} of {len(passages)} passages twice; the first is kept."
        )
    return list(kept.values()), sources
