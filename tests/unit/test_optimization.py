from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch import nn

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.optimization import adamw_with_warmup, clip_gradients


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


def with_a_trainer(module: LightningModule, steps: int = 10) -> LightningModule:
    module.trainer = SimpleNamespace(
        precision_plugin=Precision(), gradient_clip_val=None, estimated_stepping_batches=steps, optimizers=[]
    )
    return module


class Parts(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.encoders, self.decoder = nn.Linear(2, 2), nn.Linear(2, 2)


def test_parts_have_rates_of_their_own_which_the_schedule_scales():
    module = with_a_trainer(Parts())
    factors = {"encoder.0": 0.5, "encoder": 0.1}
    found = adamw_with_warmup(module, 1e-2, weight_decay=0.3, warmup=0.2, factors=factors)
    names = {parameter: name for name, parameter in module.named_parameters()}
    rates = {
        names[p]: (g["initial_lr"], g["weight_decay"]) for g in found["optimizer"].param_groups for p in g["params"]
    }
    expected = {"encoder.0": 5e-3, "encoder.1": 1e-3, "encoders": 1e-2, "decoder": 1e-2}
    for path, rate in expected.items():
        assert rates.pop(f"{path}.weight") == (pytest.approx(rate), 0.3)
        assert rates.pop(f"{path}.bias") == (pytest.approx(rate), 0.0)
    assert rates == {}
    assert [group["lr"] for group in found["optimizer"].param_groups][::2] == pytest.approx([2.5e-3, 5e-4, 5e-3])
    with pytest.raises(DistillationError, match=r"no parameter lies under 'enc'"):
        adamw_with_warmup(module, 1e-2, factors={"enc": 0.5})
    module.encoder.requires_grad_(False)
    found = adamw_with_warmup(module, 1e-2, factors=factors)
    assert sum(len(group["params"]) for group in found["optimizer"].param_groups) == 4


def test_parts_keep_their_rates_when_they_are_compiled():
    module = with_a_trainer(Parts())
    module.encoders = torch.compile(module.encoders)
    found = adamw_with_warmup(module, 1e-2, factors={"encoders": 0.5})
    assert [group["initial_lr"] for group in found["optimizer"].param_groups] == [5e-3, 5e-3, 1e-2, 1e-2]
