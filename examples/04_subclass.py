"""Subclass `DistillationModule`: a training step and an optimizer of one's own.

    python examples/04_subclass.py --teacher TEACHER --data DATA

The step adds label smoothing to the task loss; the optimizer gives the head a higher learning rate than the encoder.
"""

import argparse

import torch
from pytorch_lightning import Trainer
from torch.nn import functional as F

from lightning_distilbert import DistillationModule, Student, TextClassification, TextClassificationData


class SmoothedDistillation(DistillationModule):
    def __init__(self, smoothing: float = 0.1, head_learning_rate: float = 1e-3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("smoothing", "head_learning_rate")

    def training_step(self, batch, batch_idx):
        with self.watch(batch) as taps:
            logits = self(batch)["logits"]
        task_loss = F.cross_entropy(logits, batch["labels"], label_smoothing=self.hparams.smoothing)
        return self.distillation_loss(task_loss, taps)

    def configure_optimizers(self):
        head = [p for name, p in self.student.named_parameters() if "classifier" in name]
        encoder = [p for name, p in self.student.named_parameters() if "classifier" not in name]
        groups = [{"params": encoder, "lr": 5e-5}, {"params": head, "lr": self.hparams.head_learning_rate}]
        return torch.optim.AdamW(groups)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--max_epochs", type=int, default=3)
arguments = parser.parse_args()

module = SmoothedDistillation(
    smoothing=0.1,
    task=TextClassification(num_labels=2),
    teacher=arguments.teacher,
    student=Student(layers=2),
    objectives="logits",
)
trainer = Trainer(max_epochs=arguments.max_epochs, logger=False)
trainer.fit(module, TextClassificationData(arguments.data, text="sentence"))

again = SmoothedDistillation.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
print(f"reloaded with smoothing={again.hparams.smoothing}, val/accuracy {trainer.callback_metrics['val/accuracy']:.3f}")
