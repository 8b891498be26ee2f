"""Which teacher layers a student of fewer layers starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard, get_args

from lightning_distilbert.errors import DistillationError, check_choice

Rule = Literal["uniform", "every", "first", "last"]


def layer_choice(num_teacher_layers: int, layers: int | Sequence[int], rule: Rule = "uniform") -> tuple[int, ...]:
    r"""Choose teacher layers, counted from 0, for a student.

    With :math:`L` teacher layers and :math:`n` student layers the rule ``"uniform"`` takes, for student layer
    :math:`i = 0 \dots n - 1`,

    .. math::
        \left\lceil \frac{i (L - 1)}{n - 1} - \frac{1}{2} \right\rceil ,

    the nearest even spacing with the first and the last layer in it; a tie goes to the lower layer (6 to 3 gives
    0, 2, 5 and 12 to 6 gives 0, 2, 4, 7, 9, 11). One layer alone is the last one: without training, a student that
    lacks the teacher's last layer loses far more than one that lacks the first.

    The rule ``"every"`` takes :math:`\lceil (i + 1) L / n \rceil - 1`, the last layer of each of :math:`n` blocks (the
    map of Jiao et al. 2020, section 3.1: 12 to 4 gives 2, 5, 8, 11).

    Args:
        num_teacher_layers: The teacher's number of layers, at least 1.
        layers: How many layers to choose, or the layers themselves in increasing order. A layer expects what earlier
            layers made, so that an unsorted list is taken for a mistake.
        rule: How a number of layers is chosen: ``"uniform"``, ``"every"``, the ``"first"`` ones or the ``"last"`` ones.

    Returns:
        The chosen layers in increasing order, each in ``0 .. num_teacher_layers - 1``.

    Raises:
        DistillationError: If the number or a layer is out of range, a layer comes twice, the list is not sorted, a rule
            other than the default is given with a list, or the rule is unknown.

    Example:
        >>> layer_choice(12, 6)
        (0, 2, 4, 7, 9, 11)
        >>> layer_choice(6, 3, rule="last")
        (3, 4, 5)
        >>> layer_choice(6, [1, 3, 5])
        (1, 3, 5)
    """
    check_choice("layer_choice(rule=...)", rule, get_args(Rule))
    if not _is_integer(num_teacher_layers) or num_teacher_layers < 1:
        raise DistillationError(f"The teacher has {num_teacher_layers!r} layers; at least 1 is needed.")
    if _is_integer(layers):
        return _spread(num_teacher_layers, layers, rule)
    if isinstance(layers, (str, bytes, bool)) or not isinstance(layers, Sequence):
        raise DistillationError(
            f"layers={layers!r} is neither a number of layers nor a list of them. Pass 3, or [0, 2, 5]."
        )
    if rule != "uniform":
        raise DistillationError(
            f"rule={rule!r} has no effect on the explicit layers {list(layers)}. Leave out one of the two."
        )
    return _checked(num_teacher_layers, list(layers))


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _spread(total: int, count: int, rule: Rule) -> tuple[int, ...]:
    if not 1 <= count <= total:
        raise DistillationError(
            f"{count} layers were asked of a teacher that has {total}. Choose a number from 1 to {total}."
        )
    if rule == "first":
        return tuple(range(count))
    # -(-a // b) is the ceiling of a / b, in whole numbers: free of the rounding of floats
    if rule == "every":
        return tuple(-(-i * total // count) - 1 for i in range(1, count + 1))
    if rule == "last" or count == 1:
        return tuple(range(total - count, total))
    gaps = count - 1
    # ceil(x - 1/2), and not round(x), which rounds a half to even
    return tuple(-(-(2 * i * (total - 1) - gaps) // (2 * gaps)) for i in range(count))


def _checked(total: int, layers: list[int]) -> tuple[int, ...]:
    if not layers:
        raise DistillationError("The list of layers is empty. Name at least one layer, or pass a number of layers.")
    wrong = [layer for layer in layers if not _is_integer(layer) or not 0 <= layer < total]
    if wrong:
        raise DistillationError(
            f"The layers {wrong} of {layers} are out of range: the teacher has {total} layers, 0 to {total - 1}."
        )
    if len(set(layers)) < len(layers):
        raise DistillationError(f"The layers {layers} name a layer twice. Name each layer once.")
    if layers != sorted(layers):
        raise DistillationError(f"The layers {layers} are not in increasing order. Did you mean {sorted(layers)}?")
    return tuple(layers)
