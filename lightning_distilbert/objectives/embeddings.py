"""The objective on the embedding output: the student reads the tokens as the teacher reads them."""

from __future__ import annotations

from lightning_distilbert.objectives.hidden_states import HiddenStates, ProjectionOption
from lightning_distilbert.schedules import Schedule


class Embeddings(HiddenStates):
    r"""Mean squared distance of the embedding outputs (TinyBERT, Jiao et al. 2020, equation 9).

    .. math:: \mathcal{L} = \frac{1}{N d} \sum_n \|W e^S_n - e^T_n\|^2

    with :math:`e_n` what goes into the first layer at real token :math:`n`, and a learnt projection :math:`W` where the
    widths differ. It is ``HiddenStates(layers=[(0, 0)], metric="mse")`` under a name and with a weight of its own.

    Args:
        projection: ``auto``, ``always`` or ``never``, as in `HiddenStates`.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_distilbert.signals import Signals
        >>> student, teacher = (Signals(hidden_states=(torch.full((1, 2, 4), value),)) for value in (0.0, 3.0))
        >>> Embeddings()(student, teacher)
        tensor(9.)
    """

    name = "embeddings"

    def __init__(self, projection: ProjectionOption = "auto", weight: float | Schedule = 1.0) -> None:
        super().__init__(layers=[(0, 0)], metric="mse", projection=projection, weight=weight)
