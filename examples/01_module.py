"""Distil a text classifier with `DistillationModule` and a plain Trainer.

    python examples/01_module.py --teacher TEACHER --data DATA

TEACHER is a fine-tuned classifier (a folder or a hub name); DATA is a folder with train.tsv and dev.tsv, each with the
columns sentence and label, as in GLUE's SST-2.
"""

import argparse

from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    auto_precision,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output", default="student")
parser.add_argument("--max_epochs", type=int, default=3)
arguments = parser.parse_args()

module = DistillationModule(
    task=TextClassification(num_labels=2),
    teacher=arguments.teacher,
    student=Student(layers=2),  # cut out of the teacher: first and last layer
    objectives=[SoftTargets(temperature=2.0), HiddenStates(layers="last", weight=0.1)],
)
data = TextClassificationData(arguments.data, text="sentence", batch_size=32)

trainer = Trainer(max_epochs=arguments.max_epochs, precision=auto_precision(), logger=False, enable_checkpointing=False)
trainer.fit(module, data)

folder = module.save_student(arguments.output)  # loads with transformers alone
print(f"val/accuracy {trainer.callback_metrics['val/accuracy']:.3f}, saved in {folder}")
