"""What each task makes of its inputs, as `Task.answer` does it with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_distilbert.answers import Candidate, TaggedWord, intent_of, sentences_of, settle, trim
from lightning_distilbert.data.context_windows import Window, context_windows
from lightning_distilbert.data.inputs import CHUNK, check_masks, checked_pairs, split_pairs
from lightning_distilbert.data.word_windows import Frame, word_windows
from lightning_distilbert.deploy.runtime.outputs import best_spans, logsumexp, sigmoid, softmax
from lightning_distilbert.deploy.runtime.session import Row, batches
from lightning_distilbert.errors import DistillationError

if TYPE_CHECKING:
    from lightning_distilbert.deploy.runtime.artefact import Artefact

Options = tuple[int | None, int]  # rows in a batch, tokens of a row at most
LOGITS = ("logits", "output")
EMBEDDING = ("embedding", "sentence_embedding")
# tokens in a batch whose logits over a vocabulary are computed
FILL_BUDGET = 256


def rows_of(artefact: Artefact, texts: Sequence[Any], options: Options) -> Iterator[tuple[list[int], Row, Row]]:
    """Encode texts or pairs and run them, some thousand at a time; yields places, batch and outputs."""
    firsts, seconds = split_pairs(texts)
    for start in range(0, len(firsts), CHUNK):
        part = slice(start, start + CHUNK)
        rows = artefact.tokenizer.encode(firsts[part], seconds and seconds[part], options[1])
        budget = {"budget": FILL_BUDGET} if artefact.task == "MaskedLM" else {}
        for places, batch, outputs in artefact.session.run_rows(artefact.tokenizer, rows, options[0], **budget):
            yield [start + place for place in places], batch, outputs


def classify(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return label and probability of each text, all labels above one half with theirs, or its score."""
    name = artefact.session.output(LOGITS, rank=2)
    kind = artefact.options["problem_type"]
    answers: dict[int, Any] = {}
    for places, _, outputs in rows_of(artefact, texts, options):
        logits = outputs[name]
        names = artefact.labels or [str(index) for index in range(logits.shape[1])]
        if kind == "regression":
            found: list[Any] = [{"score": score} for score in logits[:, 0].tolist()]
        elif kind == "multi_label_classification":
            found = [
                {"labels": [{"label": names[i], "score": p} for i, p in enumerate(row) if p > 0.5]}
                for row in sigmoid(logits).tolist()
            ]
        else:
            found = [{"label": names[row.argmax()], "score": float(row.max())} for row in softmax(logits)]
        answers.update(zip(places, found, strict=True))
    return [answers[place] for place in range(len(answers))]


def intents(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return the intent of each text, or that it is out of scope."""
    name = artefact.session.output(LOGITS, rank=2)
    beyond, told = artefact.options["out_of_scope"], artefact.thresholds
    if not artefact.labels or beyond not in artefact.labels:
        raise DistillationError(f"The labels {artefact.labels} do not name {beyond!r}, for out of scope.")
    answers: dict[int, Any] = {}
    for places, _, outputs in rows_of(artefact, texts, options):
        rows = softmax(outputs[name] / np.float32(told.get("temperature", 1.0))).tolist()
        found = [intent_of(row, artefact.labels, beyond, told.get("out_of_scope")) for row in rows]
        answers.update(zip(places, found, strict=True))
    return [answers[place] for place in range(len(answers))]


def rerank(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return the score of each pair."""
    name = artefact.session.output(LOGITS, rank=2)
    answers: dict[int, Any] = {}
    for places, _, outputs in rows_of(artefact, texts, options):
        answers.update((place, {"score": row[0]}) for place, row in zip(places, outputs[name].tolist(), strict=True))
    return [answers[place] for place in range(len(answers))]


def embed(artefact: Artefact, texts: Sequence[Any], options: Options) -> np.ndarray:
    """Return the vector of each text, of shape ``(texts, width)``."""
    name = artefact.session.output(EMBEDDING, rank=2)
    found = [(places, outputs[name]) for places, _, outputs in rows_of(artefact, texts, options)]
    if not found:
        return np.empty((0, artefact.session.width(name) or artefact.width or 0), np.float32)
    vectors = np.empty((sum(len(places) for places, _ in found), found[0][1].shape[1]), np.float32)
    for places, part in found:
        vectors[places] = part
    return vectors


def fill(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return the likeliest fillings of the mask token of each text; a list for each of several."""
    name = artefact.session.output(LOGITS, rank=3)
    tokenizer, mask = artefact.tokenizer, artefact.tokenizer.mask_token
    number = tokenizer.id_of(mask)
    if mask is None or number is None:
        raise DistillationError("The tokenizer has no mask token, so that there is nothing to fill in.")
    texts = list(texts)
    check_masks(texts, *split_pairs(texts), mask)
    answers: dict[int, Any] = {}
    for places, batch, outputs in rows_of(artefact, texts, options):
        for place, ids, logits in zip(places, batch["input_ids"], outputs[name], strict=True):
            masked = np.flatnonzero(ids == number)
            if not len(masked):
                raise DistillationError(
                    f"The text {str(texts[place])[:60]!r} has no {mask} among the {len(ids)} tokens read, so that "
                    "there is nothing to fill in. Put it where a word is to be found."
                )
            found = [_likeliest(artefact, row) for row in softmax(logits[masked])]
            answers[place] = found[0] if len(found) == 1 else found
    return [answers[place] for place in range(len(answers))]


def _likeliest(artefact: Artefact, scores: np.ndarray) -> list[dict[str, Any]]:
    count = min(artefact.options["top_k"], len(scores))
    tokens = np.argpartition(-scores, count - 1)[:count]
    tokens = tokens[np.argsort(-scores[tokens], kind="stable")]
    return [{"token": artefact.tokenizer.decode(int(token)), "score": float(scores[token])} for token in tokens]


def tag(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return the entities of each text, or list of words."""
    name = artefact.session.output(LOGITS, rank=3)
    if not artefact.labels:
        raise DistillationError("The labels have no names, so that nobody knows which words make an entity.")
    sentences, tokenizer = sentences_of(texts), artefact.tokenizer
    frame = Frame.of(tokenizer)
    windows = [
        window
        for part in word_windows(tokenizer, frame, [sentence.words for sentence in sentences], options[1])
        for window in part
    ]
    rows = [tokenizer.row(window.ids, np.full(len(window.ids), frame.token_type or 0)) for window in windows]
    words: list[dict[int, TaggedWord]] = [{} for _ in sentences]
    for places, batch, outputs in artefact.session.run_rows(tokenizer, rows, options[0]):
        for place, logits in zip(places, outputs[name], strict=True):
            window = windows[place]
            begins = window.word >= 0
            scores = softmax(logits[tokenizer.inside(len(window.ids), batch["input_ids"].shape[1])][begins])
            for word, row in zip(window.word[begins].tolist(), scores, strict=True):
                words[window.sentence][word] = TaggedWord(int(row.argmax()), float(row.max()))
    return [sentence.entities(artefact.labels, tags) for sentence, tags in zip(sentences, words, strict=True)]


def read(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return the answer to each question in its context, which is read in windows."""
    names = [artefact.session.output((name,), rank=2) for name in ("start_logits", "end_logits")]
    questions, contexts = checked_pairs(texts)
    told, tokenizer = artefact.options, artefact.tokenizer
    threshold = artefact.thresholds.get("no_answer", 0.0) if told["no_answer"] else None
    answers = []
    limits = (options[1], told["doc_stride"], told["max_question_length"])
    for windows, _, _ in context_windows(tokenizer, questions, contexts, *limits, shrink=True):
        rows = [tokenizer.row(window.ids, window.types) for window in windows]
        found: dict[int, Candidate] = {}
        for places, batch, outputs in artefact.session.run_rows(tokenizer, rows, options[0]):
            part = [windows[place] for place in places]
            width = batch["input_ids"].shape[1]
            shifts = [tokenizer.inside(len(window.ids), width).start for window in part]
            start, end = (outputs[name] for name in names)
            candidates = _candidates(start, end, part, shifts, contexts, told["max_answer_length"])
            found.update(zip(places, candidates, strict=True))
        by_example: dict[int, list[Candidate]] = {}
        for place, window in enumerate(windows):
            by_example.setdefault(window.example, []).append(found[place])
        answers += [settle(group, contexts[example], threshold) for example, group in by_example.items()]
    return answers


def _candidates(
    start: np.ndarray, end: np.ndarray, windows: list[Window], shifts: list[int], contexts: list[str], longest: int
) -> list[Candidate]:
    """Return the best span of each window, as `QuestionAnswering.candidates` does."""
    rows = np.arange(len(windows))
    allowed = np.zeros(start.shape, dtype=bool)
    for row, (window, shift) in enumerate(zip(windows, shifts, strict=True)):
        begin, stop = window.context
        # byte-level tokenizers have tokens without a character of their own, for white space
        allowed[row, shift + begin : shift + stop] = window.offsets[begin:stop, 0] < window.offsets[begin:stop, 1]
    scores, first, last = best_spans(start, end, allowed, longest)
    nulls = start[rows, shifts] + end[rows, shifts]
    mask = np.zeros(start.shape, dtype=bool)  # over the same tokens as in training
    mask[rows, shifts] = True
    for row, (window, shift) in enumerate(zip(windows, shifts, strict=True)):
        mask[row, shift + window.context[0] : shift + window.context[1]] = True
    total = logsumexp(start, mask) + logsumexp(end, mask)
    found = []
    for row, (window, shift) in enumerate(zip(windows, shifts, strict=True)):
        score, null = float(scores[row]), float(nulls[row])
        begin = stop = 0
        if score > -np.inf:
            offsets = window.offsets
            begin, stop = int(offsets[first[row] - shift, 0]), int(offsets[last[row] - shift, 1])
            begin, stop = trim(contexts[window.example], begin, stop)
        probabilities = np.exp(scores[row] - total[row]), np.exp(nulls[row] - total[row])
        found.append(Candidate(score, null, float(probabilities[0]), float(probabilities[1]), begin, stop))
    return found


def translate(artefact: Artefact, texts: Sequence[Any], options: Options) -> list[Any]:
    """Return the translation of each text; that of nothing is nothing."""
    engine, writer, rules = artefact.session, artefact.writer, artefact.rules
    firsts, seconds = split_pairs(texts)
    if seconds is not None:
        raise DistillationError(f"Entry 0 is a pair of texts, {texts[0]!r}: a translation is made of a single one.")
    answers = [""] * len(firsts)
    written = [place for place, text in enumerate(firsts) if text.strip()]
    for start in range(0, len(written), CHUNK):
        part = written[start : start + CHUNK]
        rows = artefact.tokenizer.encode([firsts[place] for place in part], None, options[1])
        for places, batch in batches(artefact.tokenizer, rows, options[0]):
            for place, tokens in zip(places, engine.generate(batch, rules).tokens, strict=True):
                answers[part[place]] = writer.write(tokens)
    return answers


PREDICTORS: dict[str, Callable[[Artefact, Sequence[Any], Options], Any]] = {
    "TextClassification": classify,
    "IntentClassification": intents,
    "TokenClassification": tag,
    "QuestionAnswering": read,
    "Retrieval": embed,
    "Reranking": rerank,
    "MaskedLM": fill,
    "Translation": translate,
}
