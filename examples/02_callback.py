"""Distil inside a LightningModule that knows nothing of distillation: one callback is added, no line is changed.

    python examples/02_callback.py --teacher TEACHER --data DATA

TEACHER is a fine-tuned classifier (a folder or a hub name); DATA is a folder with train.tsv and dev.tsv, each with the
columns sentence and label. `Classifier` returns a loss tensor from its training step; `EncoderAndHead` returns a dict
and keeps encoder and head apart.
"""

import argparse

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from lightning_distilbert import DistillationLoss, HiddenStates, SoftTargets, TextClassificationData, build_student


class Classifier(LightningModule):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def training_step(self, batch, batch_idx):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = self.model(**inputs, labels=batch["labels"]).loss
        self.log("my_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("my_val_loss", self.training_step(batch, batch_idx))  # the module's own loss, without the teacher

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-5)


class EncoderAndHead(LightningModule):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, 2)

    def training_step(self, batch, batch_idx):
        states = self.encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        logits = self.classifier(states[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, batch["labels"]), "logits": logits.detach()}

    def validation_step(self, batch, batch_idx):
        self.log("my_val_loss", self.training_step(batch, batch_idx)["loss"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-5)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--max_epochs", type=int, default=3)
arguments = parser.parse_args()

# the smaller model that the two modules start from, saved as any other transformers model
build_student(arguments.teacher, layers=2).save_pretrained("small")
objectives = [SoftTargets(temperature=2.0), HiddenStates(layers="last", weight=0.1)]

for module, student in (
    (Classifier("small"), "model"),
    (EncoderAndHead("small"), {"hidden_states": "encoder", "logits": "classifier"}),
):
    callback = DistillationLoss(arguments.teacher, student=student, objectives=objectives)
    trainer = Trainer(max_epochs=arguments.max_epochs, callbacks=[callback], logger=False, enable_checkpointing=False)
    trainer.fit(module, TextClassificationData(arguments.data, text="sentence", tokenizer=arguments.teacher))
    terms = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items() if "distill" in name}
    print(type(module).__name__, terms)
