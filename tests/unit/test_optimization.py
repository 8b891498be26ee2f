from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch import nn

from lightning_distilbert.optimization import clip_gradients


class Own(Precision):
    """Clips in a way of its own, as that of DeepSpeed does."""

    def clip_gradients(self, optimizer, clip_val=0.0, gradient_clip_algorithm=None):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.zero_()


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Own(), [0.0, 0.0]), (Precision(), [0.6, 0.8]), (MixedPrecision("bf16-mixed", "cpu"), [0.6, 0.8])],
)
def test_a_precision_plugin_may_clip_in_its_own_way(precision: Precision, expected: list[float]):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    module = LightningModule()
    module.trainer = SimpleNamespace(
        precision_plugin=precision, gradient_clip_val=1.0, gradient_clip_algorithm=None, optimizers=[]
    )
    clip_gradients(module, torch.optim.SGD([parameter], lr=1.0), 1.0, "norm")
    assert parameter.grad.tolist() == pytest.approx(expected, rel=1e-4)
