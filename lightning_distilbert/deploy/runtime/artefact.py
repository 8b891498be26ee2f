"""An exported student that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_distilbert.data.inputs import question_pairs
from lightning_distilbert.deploy.runtime import predictors, vectors
from lightning_distilbert.deploy.runtime.folder import TARGET, Description, describe
from lightning_distilbert.deploy.runtime.session import Session
from lightning_distilbert.deploy.runtime.tokens import TextTokenizer
from lightning_distilbert.deploy.runtime.translator import Translator
from lightning_distilbert.errors import DistillationError


class Artefact:
    """An exported student, which answers as `lightning_distilbert.load` of its folder does.

    Args:
        description: What its folder says.
        tokenizer: Its tokenizer.
        session: Its model; of a student that translates both of its graphs.
        writer: The tokenizer of its translations, if it translates.

    Attributes:
        task: The name of its task, such as ``"TextClassification"``.
        options: The task's options.
        labels: The names of the labels in the order of the head's outputs, or None.
        thresholds: What the task chose on validation data, such as from when a question has no answer.
        width: The size of its vectors, or None.
        max_length: Tokens of a text at most, special ones included; what is longer is cut, or read in windows.
    """

    def __init__(
        self,
        description: Description,
        tokenizer: TextTokenizer,
        session: Any,
        writer: TextTokenizer | None = None,
    ) -> None:
        self.task = description.task
        self.options: Mapping[str, Any] = description.options
        self.labels = description.labels
        self.thresholds: Mapping[str, float] = description.thresholds
        self.width = description.width
        self.max_length = min(tokenizer.max_length, description.positions or tokenizer.max_length)
        self.tokenizer = tokenizer
        self.session = session
        self.writer: Any = writer
        self.rules: Any = description.search
        self._predict = predictors.PREDICTORS[self.task]

    def __repr__(self) -> str:
        return f"Artefact({self.task}, labels={self.labels}, max_length={self.max_length})"

    def predict(self, inputs: Sequence[Any], batch_size: int | None = None, max_length: int | None = None) -> list[Any]:
        """Answer inputs, as `DistillationModule.predict` does.

        Args:
            inputs: The texts, pairs of texts as tuples, or lists of words, as the task takes them.
            batch_size: Texts in a batch; those of similar length go together. None is as many as make 1,024 tokens.
            max_length: Tokens kept of a text at most; None, and what exceeds it, is what tokenizer and model allow.

        Returns:
            One plain answer per input, in their order.

        Raises:
            DistillationError: If an input or an option is bad.
        """
        found = self._predict(self, inputs, self._limits(batch_size, max_length))
        answers: list[Any] = found.tolist() if isinstance(found, np.ndarray) else found
        return answers

    def classify(self, texts: Any, batch_size: int | None = None) -> Any:
        """Classify or score texts.

        Args:
            texts: A text, or a pair as a tuple, or a list of them.
            batch_size: As in `predict`.

        Returns:
            ``label`` and ``score``, of an intent ``nearest`` too; ``labels``, all above one half; or a ``score``. For a
            list of texts a list of them.

        Raises:
            DistillationError: If the task is another, or something is no text.
        """
        self._check("classify", "TextClassification", "IntentClassification")
        return self._one_or_many(texts, batch_size)

    def tag(self, texts: Any, batch_size: int | None = None) -> Any:
        """Find the entities in texts.

        Args:
            texts: A text, or a list in which each is a text or a list of words.
            batch_size: Windows in a batch, as in `predict`.

        Returns:
            The entities: ``label``, ``text``, ``start``, ``end`` and ``score``. For a list a list of them.

        Raises:
            DistillationError: If the task is another, or something is neither text nor words.
        """
        self._check("tag", "TokenClassification")
        return self._one_or_many(texts, batch_size)

    def answer(self, question: Any, context: Any, batch_size: int | None = None) -> Any:
        """Find the answer to a question in a text of any length.

        Args:
            question: The question, or several.
            context: The text that holds the answer, or one for each question; a single one serves all questions.
            batch_size: Windows in a batch, as in `predict`.

        Returns:
            ``answer``, ``score``, ``start`` and ``end``; for several a list of them.

        Raises:
            DistillationError: If the task is another, or the numbers of questions and texts differ.
        """
        self._check("answer", "QuestionAnswering")
        found = self.predict(question_pairs(question, context), batch_size)
        return found[0] if isinstance(question, str) and isinstance(context, str) else found

    def embed(self, texts: Any, batch_size: int | None = None) -> np.ndarray:
        """Embed texts.

        Args:
            texts: A text, or a list of them.
            batch_size: As in `predict`.

        Returns:
            Float32 of shape ``(texts, width)``; ``(width,)`` for a single text.

        Raises:
            DistillationError: If the task is another, or something is no text.
        """
        self._check("embed", "Retrieval")
        single = isinstance(texts, str)
        found = predictors.embed(self, [texts] if single else texts, self._limits(batch_size))
        return np.asarray(found[0] if single else found)

    def search(
        self,
        queries: Any,
        corpus_vectors: np.ndarray,
        top_k: int = 10,
        similarity: str | None = None,
        block: int = 4096,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the texts of a corpus that are nearest to queries, exactly.

        Args:
            queries: Texts (one, or a list), or their vectors, of shape ``(queries, width)``.
            corpus_vectors: What `embed` gave for the corpus; it may be mapped from a file.
            top_k: How many to return for each query, at most.
            similarity: ``"cosine"`` or ``"dot"``; None is that of the student.
            block: How many of both to compare at once.

        Returns:
            The scores and the positions in the corpus, of shape ``(queries, top_k)``, the best first.

        Raises:
            DistillationError: If the task is another, an option is bad, or the widths differ.
        """
        self._check("search", "Retrieval")
        if not isinstance(queries, np.ndarray) or queries.dtype.kind not in "fiu":
            queries = self.embed([queries] if isinstance(queries, str) else queries)
        by = similarity or str(self.options["similarity"])
        return vectors.search(queries, corpus_vectors, top_k, by, block)

    def rerank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, batch_size: int | None = None
    ) -> list[dict[str, Any]]:
        """Order documents by how well they answer a query.

        Args:
            query: The query.
            documents: The documents.
            top_k: How many to return at most; None is all.
            batch_size: Pairs in a batch, as in `predict`.

        Returns:
            ``index``, the place of a document in the list, and its ``score``, the best first; of equal ones the first.

        Raises:
            DistillationError: If the task is another, `top_k` is below 1, or something is no text.
        """
        self._check("rerank", "Reranking")
        if top_k is not None and top_k < 1:
            raise DistillationError(f"top_k={top_k}: it has to be 1 or more.")
        if isinstance(documents, str):
            raise DistillationError(f"A single document was given, {documents[:60]!r}. Give a list of them.")
        scores = [found["score"] for found in self.predict([(query, text) for text in documents], batch_size)]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[:top_k]
        return [{"index": place, "score": scores[place]} for place in order]

    def fill(self, texts: Any, batch_size: int | None = None) -> Any:
        """Fill the mask tokens of texts.

        Args:
            texts: A text, or a list of them.
            batch_size: As in `predict`.

        Returns:
            The likeliest fillings, ``token`` and ``score``; a list of them for each of several mask tokens. For a list
            of texts a list of them.

        Raises:
            DistillationError: If the task is another, or a text has no mask token.
        """
        self._check("fill", "MaskedLM")
        return self._one_or_many(texts, batch_size)

    def translate(self, texts: Any, batch_size: int | None = None) -> Any:
        """Translate texts, by the search that was exported with the student.

        Args:
            texts: A text, or a list of them.
            batch_size: As in `predict`.

        Returns:
            The translation; for a list of texts a list of them. That of nothing is nothing.

        Raises:
            DistillationError: If the task is another, or something is no text.
        """
        self._check("translate", "Translation")
        return self._one_or_many(texts, batch_size)

    def _one_or_many(self, texts: Any, batch_size: int | None) -> Any:
        if isinstance(texts, (str, tuple)):
            return self.predict([texts], batch_size)[0]
        return self.predict(texts, batch_size)

    def _limits(self, batch_size: int | None, max_length: int | None = None) -> predictors.Options:
        return batch_size, min(max_length or self.max_length, self.max_length)

    def _check(self, method: str, *tasks: str) -> None:
        if self.task not in tasks:
            raise DistillationError(
                f"{method}() is for a student of {' or '.join(tasks)}, and this one is of {self.task}. Use "
                "predict(inputs)."
            )


def load(folder: str | Path, threads: int | None = None, verify: str = "model") -> Artefact:
    """Load an artefact that `lightning_distilbert.deploy.export` wrote in the format ``onnx`` or ``onnx-int8``.

    Args:
        folder: The folder.
        threads: Threads of one call; None is as many as this process may use.
        verify: Whether the hash of the ``"model"`` file is compared with the manifest's before it is run, or of
            ``"all"`` files, or of ``"none"``.

    Returns:
        The artefact, ready to answer.

    Raises:
        DistillationError: If the folder is no artefact, a file is damaged, or its hash is not that of the manifest.

    Example:
        >>> load("/no/such/folder")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: There is no folder '/no/such/folder'. ...
    """
    path = Path(folder).expanduser()
    description = describe(path, verify)
    if description.decoder is not None:
        translator = Translator(description.model, description.decoder, threads)
        writer = TextTokenizer(path / TARGET, typed=False)
        return Artefact(description, TextTokenizer(path, typed=False), translator, writer)
    session = Session(description.model, threads)
    return Artefact(description, TextTokenizer(path, typed="token_type_ids" in session.inputs), session)
