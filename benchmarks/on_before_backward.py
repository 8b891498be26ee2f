"""Why distillation terms are not added in `on_before_backward`: the gradients that come out there.

    python -m benchmarks.on_before_backward

A weight with a task gradient of 2, and a callback that adds a term with a gradient of 10 in that hook: 12 is right.
"""

import logging
import warnings

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch.utils.data import DataLoader

from lightning_distilbert.report.table import Table


class Probe(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = None

    def training_step(self, batch, batch_idx):
        return 2.0 * self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_before_optimizer_step(self, optimizer):
        self.seen = float(self.weight.grad)  # a gradient scaler has unscaled it by now


class InTheWrongHook(Callback):
    def on_before_backward(self, trainer, module, loss):
        (10.0 * module.weight).backward()


def gradient(precision, accumulated):
    module = Probe()
    Trainer(
        max_steps=1,
        accelerator="cpu",
        accumulate_grad_batches=accumulated,
        plugins=[precision],
        callbacks=[InTheWrongHook()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(range(4)))
    return module.seen


def main():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    precisions = {
        "32-true": lambda: Precision(),
        "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu"),
        "16-mixed, loss scale 1024": lambda: MixedPrecision(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0)
        ),
    }
    rows = [[name, *(f"{gradient(make(), n):.2f}" for n in (1, 4))] for name, make in precisions.items()]
    print(Table(["", "accumulate_grad_batches=1", "accumulate_grad_batches=4"], rows).to_text())


if __name__ == "__main__":
    main()
