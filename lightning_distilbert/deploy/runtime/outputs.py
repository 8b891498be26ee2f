"""What the outputs of a graph mean, in numpy: probabilities, and the best span of a text."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis.

    Example:
        >>> softmax(np.array([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each logit by itself.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0])).tolist()
        [0.5, 0.0]
    """
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def logsumexp(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of exponentials over some places of each row.

    Args:
        logits: Of shape ``(batch, sequence)``.
        mask: The places, boolean, of that shape; each row has one at least.

    Example:
        >>> logsumexp(np.zeros((1, 3)), np.array([[True, True, False]])).round(4).tolist()
        [0.6931]
    """
    allowed = np.where(mask, logits, -np.inf)
    most = allowed.max(axis=1)
    return np.asarray(most + np.log(np.exp(allowed - most[:, None]).sum(axis=1)))


def best_spans(
    starts: np.ndarray, ends: np.ndarray, mask: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the span of each row whose start and end score best together, as `functional.spans.best_spans` does.

    Args:
        starts: The logits of a start, of shape ``(batch, sequence)``.
        ends: Those of an end, of that shape.
        mask: The tokens that may bound a span, boolean, of that shape.
        max_length: The most tokens of a span.

    Returns:
        The scores, and the places of the first and the last token, of shape ``(batch,)``. A row without a token in the
        mask has the score ``-inf`` and places that mean nothing.

    Example:
        >>> starts, ends = np.array([[5.0, 0.0, 2.0]]), np.array([[0.0, 1.0, 3.0]])
        >>> [found.tolist() for found in best_spans(starts, ends, np.ones((1, 3), bool), max_length=2)]
        [[6.0], [0], [1]]
    """
    starts, ends = np.where(mask, starts, -np.inf), np.where(mask, ends, -np.inf)
    reach = min(max_length, starts.shape[1])
    padded = np.pad(ends, ((0, 0), (0, reach - 1)), constant_values=-np.inf)
    # windows[b, i, k] is the score of the end k tokens after i
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=1)
    ahead = windows.argmax(axis=-1)
    scores = starts + windows.max(axis=-1)
    rows = np.arange(len(starts))
    first = scores.argmax(axis=1)
    return scores[rows, first], first, first + ahead[rows, first]
