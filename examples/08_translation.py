"""Train a translator on a pretrained encoder, distil a smaller one from it, and translate.

    python examples/08_translation.py --encoder ENCODER --data DATA --languages en de

ENCODER is a pretrained encoder of the language that is read (a folder or a hub name); DATA is a folder with train.en,
train.de, val.en and val.de (also .gz), where each line of one file is the translation of that line of the other.
"""

import argparse

from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationModule,
    SoftTargets,
    Student,
    Translation,
    TranslationData,
    TranslationStudent,
    auto_precision,
    load,
)
from lightning_distilbert.corpus_translation import translate_corpus

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--encoder", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--languages", nargs=2, default=["en", "de"])
parser.add_argument("--texts", help="a file of texts for the teacher to translate; left out, the data's translations")
parser.add_argument("--output", default="student")
parser.add_argument("--max_epochs", type=int, default=10)
parser.add_argument("--vocab_size", type=int, default=8000)
parser.add_argument("--text", default="A man is walking in the snow.")
arguments = parser.parse_args()


def fit(module, source):
    data = TranslationData(source, languages=arguments.languages, batch_size=64)
    flags = {"precision": auto_precision(), "logger": False, "enable_checkpointing": False, "gradient_clip_val": 1.0}
    trainer = Trainer(max_epochs=arguments.max_epochs, **flags)
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# a teacher: the whole encoder with six layers of a decoder; its target tokenizer is trained on the training split
described = TranslationStudent(arguments.encoder, decoder_layers=6, vocab_size=arguments.vocab_size)
teacher = DistillationModule(Translation(), student=described, learning_rate=5e-4, warmup=0.1)
scores = fit(teacher, arguments.data)
print(f"teacher: val/bleu {scores['val/bleu']:.1f}, val/chrf {scores['val/chrf']:.1f}")
teacher.save_student("translator")

source = arguments.data
if arguments.texts:  # sequence-level: the student learns the teacher's translations, which are written once
    translate_corpus("translator", arguments.texts, "distilled.jsonl", overwrite=True)
    source = {"train": "distilled.jsonl", "validation": f"{arguments.data}/val"}

# a student: half of the teacher's encoder and two layers of a decoder; word-level: its probabilities at each token
student = DistillationModule(
    Translation(),
    teacher="translator",
    student=TranslationStudent(Student(), decoder_layers=2),
    objectives=[SoftTargets(temperature=1.0)],
    learning_rate=5e-4,
    warmup=0.1,
)
scores = fit(student, source)
print(f"student: val/bleu {scores['val/bleu']:.1f}, val/chrf {scores['val/chrf']:.1f}")

translator = load(student.save_student(arguments.output))
print(f"{arguments.text} -> {translator.predict([arguments.text])[0]}")
