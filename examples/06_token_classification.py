"""Distil a tagger of entities, and find the entities in a text with the saved student.

    python examples/06_token_classification.py --teacher TEACHER --data DATA

TEACHER is a model fine-tuned on token classification (a folder or a hub name), whose config names its labels; DATA is a
folder with eng.train and eng.testa as in CoNLL-2003, or train.txt and dev.txt, or train.jsonl and dev.jsonl with the
columns tokens and tags.
"""

import argparse

from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    TokenClassification,
    TokenClassificationData,
    auto_precision,
    load,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output", default="student")
parser.add_argument("--max_epochs", type=int, default=3)
parser.add_argument("--text", default="Peter Blackburn flew from Al-Ain to the U.S. with Nadim Ladki's team.")
arguments = parser.parse_args()

module = DistillationModule(
    task=TokenClassification(),  # the labels are those that the teacher's config names, in its order
    teacher=arguments.teacher,
    student=Student(layers=2),  # cut out of the teacher, with its head: first and last layer
    objectives=[SoftTargets(temperature=2.0), HiddenStates(layers="initialised", metric="mse", weight=10.0)],
)
data = TokenClassificationData(arguments.data, batch_size=32)

trainer = Trainer(max_epochs=arguments.max_epochs, precision=auto_precision(), logger=False, enable_checkpointing=False)
trainer.fit(module, data)
print(f"val/f1 {trainer.callback_metrics['val/f1']:.3f} of whole entities")

tagger = load(module.save_student(arguments.output))
for entity in tagger.predict([arguments.text])[0]:
    print(f"{entity['label']}: {entity['text']!r} at {entity['start']}-{entity['end']}, {entity['score']:.3f}")
