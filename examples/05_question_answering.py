"""Distil a reader that finds answers in long texts, and ask the saved student.

    python examples/05_question_answering.py --teacher TEACHER --data DATA

TEACHER is a model fine-tuned on question answering (a folder or a hub name); DATA is a folder with train-v1.1.json and
dev-v1.1.json in SQuAD's format, or a mapping of them as `QuestionAnsweringData` takes it.
"""

import argparse

from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    QuestionAnswering,
    QuestionAnsweringData,
    SoftTargets,
    Student,
    auto_precision,
    load,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output", default="student")
parser.add_argument("--max_epochs", type=int, default=3)
parser.add_argument("--max_length", type=int, default=384)
parser.add_argument("--doc_stride", type=int, default=128)
arguments = parser.parse_args()

module = DistillationModule(
    task=QuestionAnswering(doc_stride=arguments.doc_stride),
    teacher=arguments.teacher,
    student=Student(layers=2),  # cut out of the teacher, with its head: first and last layer
    # start and end are distributions over the context; neither the question nor padding is compared
    objectives=[SoftTargets(temperature=2.0), HiddenStates(layers="initialised", metric="mse", weight=10.0)],
)
data = QuestionAnsweringData(arguments.data, batch_size=32, max_length=arguments.max_length)

trainer = Trainer(max_epochs=arguments.max_epochs, precision=auto_precision(), logger=False, enable_checkpointing=False)
trainer.fit(module, data)
scores = trainer.callback_metrics
print(f"val/em {scores['val/em']:.3f}, val/f1 {scores['val/f1']:.3f}")

reader = load(module.save_student(arguments.output))
found = reader.answer("Who built the tower?", "The tower was built by the man of the city. " * 50)
print(f"{found['answer']!r} from character {found['start']} to {found['end']}, probability {found['score']:.3f}")
