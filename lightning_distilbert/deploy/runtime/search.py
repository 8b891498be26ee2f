"""How a translation is found token by token: the likeliest each time, or by beam search, as transformers does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lightning_distilbert.errors import DistillationError

NEVER = -1e9  # the score of what is not there; transformers' number, which float32 holds
# settings that say nothing of which tokens are found, as long as nothing is drawn at random
NEUTRAL = ("bos_token_id", "transformers_version", "use_cache", "temperature", "top_k", "top_p", "do_sample")
READ = (
    *("decoder_start_token_id", "eos_token_id", "pad_token_id", "num_beams", "length_penalty", "early_stopping"),
    *("max_length", "max_new_tokens"),
)


@dataclass(frozen=True)
class Search:
    """The rules of a search.

    Attributes:
        start: The token that a translation begins with.
        ends: Tokens that end it.
        pad: The token behind its end.
        most: Tokens of a translation at most, its end included.
        beams: Translations that are held at a time; 1 takes the likeliest token each time.
        length_penalty: The exponent of a translation's length, by which the sum of its logarithms is divided.
        early_stopping: Whether a search ends as soon as there are `beams` translations; ``"never"`` ends it when no
            better one can come.
    """

    start: int
    ends: tuple[int, ...]
    pad: int
    most: int
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    @classmethod
    def read(cls, settings: Mapping[str, Any], where: str = "generation_config.json") -> Search:
        """Read the rules from settings as transformers' ``GenerationConfig`` writes them.

        Args:
            settings: The settings.
            where: Where they are from, for errors.

        Raises:
            DistillationError: If one is missing or of another kind, or there is a rule that is not applied here.

        Example:
            >>> told = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_new_tokens": 9}
            >>> Search.read(told).ends, Search.read(told | {"num_beams": 4}).beams
            ((3,), 4)
        """
        known = (*READ, *NEUTRAL)
        # 0 stands for nothing, but where it is the number of a token
        told = {name for name, value in settings.items() if value or (value == 0 and name.endswith("_token_id"))}
        other = [name for name in settings if name in told and name not in known and name[0] != "_"]
        if other or settings.get("do_sample"):
            name = other[0] if other else "do_sample"
            raise DistillationError(
                f"{where}: the generation setting {name}={settings[name]!r} is none that is applied here, so that the "
                "translations would be others. Applied are the number of beams, the length penalty, early stopping "
                "and lengths. Set it to None in the model's generation_config."
            )
        ends = settings.get("eos_token_id")
        limit, whole = settings.get("max_new_tokens"), settings.get("max_length")
        most = whole - 1 if limit is None and isinstance(whole, int) else limit  # the start counts in the latter
        found = cls(
            settings.get("decoder_start_token_id"),  # type: ignore[arg-type]
            tuple(ends) if isinstance(ends, (list, tuple)) else (ends,),  # type: ignore[arg-type]
            settings.get("pad_token_id"),  # type: ignore[arg-type]
            most,  # type: ignore[arg-type]
            settings.get("num_beams") or 1,
            1.0 if settings.get("length_penalty") is None else settings["length_penalty"],
            settings.get("early_stopping") or False,
        )
        numbers = (found.start, found.pad, found.most, found.beams, *found.ends)
        sound = all(type(number) is int and number >= 0 for number in numbers) and min(found.most, found.beams) >= 1
        sound &= isinstance(found.length_penalty, (int, float)) and found.early_stopping in (True, False, "never")
        if not sound:
            raise DistillationError(
                f"{where} does not say how translations are searched for: it needs {', '.join(READ[:3])} and "
                f"max_new_tokens as numbers, beside what is known of beams, and says {dict(settings)}. Export the "
                "student again."
            )
        return found


class Steps(Protocol):
    """A decoder in the midst of some translations."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one more token of each row, int64 of shape ``(rows,)``; return the logits of the next."""
        ...

    def take(self, rows: np.ndarray) -> None:
        """Go on with some rows, in this order; one may be taken several times."""
        ...


@dataclass(frozen=True)
class Found:
    """Translations.

    Attributes:
        tokens: Without the start, padded behind their ends, of shape ``(texts, tokens)``.
        scores: The sum of the logarithms of each one's probabilities, of shape ``(texts,)``; of a beam search it is
            divided by the length to the power of the length penalty.
    """

    tokens: np.ndarray
    scores: np.ndarray


def search(steps: Steps, texts: int, rules: Search) -> Found:
    """Find a translation of each text.

    Args:
        steps: The decoder, one row for each text.
        texts: How many there are.
        rules: The rules.
    """
    return greedy(steps, texts, rules) if rules.beams == 1 else beam_search(steps, texts, rules)


def greedy(steps: Steps, texts: int, rules: Search) -> Found:
    """Take the likeliest token each time, until its translation ends.

    Args:
        steps: The decoder, one row for each text.
        texts: How many there are.
        rules: The rules.
    """
    tokens = np.full((texts, rules.most), rules.pad)
    scores = np.zeros(texts, np.float32)
    going, last = np.arange(texts), np.full(texts, rules.start)
    for step in range(rules.most if texts else 0):
        logs = log_softmax(steps.step(last))
        last = logs.argmax(axis=1)
        tokens[going, step] = last
        scores[going] += logs[np.arange(len(last)), last]
        on = np.flatnonzero(~np.isin(last, rules.ends))
        if len(on) < len(last):
            going, last = going[on], last[on]
            if not len(going):
                return Found(tokens[:, : step + 1], scores)
            steps.take(on)
    return Found(tokens, scores)


def beam_search(steps: Steps, texts: int, rules: Search) -> Found:
    """Hold several translations of each text, go on with the likeliest, and return the best of those that ended.

    What is found, and when a search ends, is as in transformers' ``generate``.

    Args:
        steps: The decoder, one row for each text.
        texts: How many there are.
        rules: The rules.
    """
    beams = rules.beams
    found = Found(np.full((texts, rules.most), rules.pad), np.zeros(texts, np.float32))
    steps.take(np.repeat(np.arange(texts), beams))
    left = np.arange(texts)  # the texts that are still searched
    state = _Beams.begin(texts, rules)
    last = np.full(texts * beams, rules.start)
    for step in range(rules.most if texts else 0):
        logs = log_softmax(steps.step(last)).reshape(len(left), beams, -1)
        rows = state.advance(logs, step, rules)
        over = state.over(step, rules)
        found.tokens[left[over]] = state.ended[over, 0]
        found.scores[left[over]] = state.best[over, 0]
        left, rows, state = left[~over], rows[~over], state.of(~over)
        if not len(left):
            break
        steps.take(rows.ravel())
        last = state.tokens[:, :, step].ravel()
    used = (found.tokens != rules.pad).any(axis=0).nonzero()[0]
    return Found(found.tokens[:, : used[-1] + 1 if len(used) else 0], found.scores)


@dataclass
class _Beams:
    """Where the searches of some texts are: the translations that go on, and those that ended, the best first."""

    tokens: np.ndarray  # (texts, beams, most)
    scores: np.ndarray  # (texts, beams), float32 as all scores
    ended: np.ndarray  # (texts, beams, most)
    best: np.ndarray  # (texts, beams)
    full: np.ndarray  # (texts, beams): whether there is one

    @classmethod
    def begin(cls, texts: int, rules: Search) -> _Beams:
        tokens = np.full((texts, rules.beams, rules.most), rules.pad)
        scores = np.full((texts, rules.beams), NEVER, np.float32)
        best, full = scores.copy(), np.zeros(scores.shape, bool)
        scores[:, 0] = 0  # all beams begin with the same token
        return cls(tokens, scores, tokens.copy(), best, full)

    def of(self, texts: np.ndarray) -> _Beams:
        return self if texts.all() else _Beams(*(value[texts] for value in vars(self).values()))

    def advance(self, logs: np.ndarray, step: int, rules: Search) -> np.ndarray:
        """Add a token to each beam; return which of the decoder's rows go on."""
        texts, beams, size = logs.shape
        total = (logs + self.scores[:, :, None]).reshape(texts, -1)
        # enough that there are beams to go on with if all others end
        scores, places = top(total, max(2, 1 + len(rules.ends)) * beams)
        origin, tokens = places // size, places % size
        sequences = np.take_along_axis(self.tokens, origin[:, :, None], axis=1)
        sequences[:, :, step] = tokens
        ends = np.isin(tokens, rules.ends) | (step + 1 == rules.most)

        just = ends & (np.arange(ends.shape[1]) < beams)  # the others are there to go on only
        if rules.early_stopping is True:
            just &= ~self.full.all(axis=1, keepdims=True)
        penalised = scores / np.float32((step + 1) ** rules.length_penalty)
        all_scores = np.concatenate([self.best, np.where(just, penalised, np.float32(NEVER))], axis=1)
        self.best, kept = top(all_scores, beams)
        self.ended = np.take_along_axis(np.concatenate([self.ended, sequences], axis=1), kept[:, :, None], axis=1)
        self.full = np.take_along_axis(np.concatenate([self.full, just], axis=1), kept, axis=1)

        self.scores, kept = top(scores + ends * np.float32(NEVER), beams)
        self.tokens = np.take_along_axis(sequences, kept[:, :, None], axis=1)
        return np.take_along_axis(origin, kept, axis=1) + np.arange(texts)[:, None] * beams

    def over(self, step: int, rules: Search) -> np.ndarray:
        """Tell of which texts the search is over."""
        long = rules.early_stopping == "never" and rules.length_penalty > 0
        possible = self.scores[:, 0] / np.float32((rules.most if long else step + 1) ** rules.length_penalty)
        full = self.full.all(axis=1)
        over = full & ((possible <= self.best.min(axis=1)) | (rules.early_stopping is True))
        return np.asarray(over | (step + 1 == rules.most))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities over the last axis.

    Example:
        >>> np.exp(log_softmax(np.array([[0.0, 0.0]]))).round(3).tolist()
        [[0.5, 0.5]]
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def top(scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest scores of each row and their places, the highest first.

    Args:
        scores: Of shape ``(rows, places)``.
        number: How many; all, where there are fewer.

    Example:
        >>> top(np.array([[0.1, 0.5, 0.3]]), 2)[1].tolist()
        [[1, 2]]
    """
    number = min(number, scores.shape[1])
    places = np.argpartition(scores, scores.shape[1] - number, axis=1)[:, -number:]
    values = np.take_along_axis(scores, places, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)
