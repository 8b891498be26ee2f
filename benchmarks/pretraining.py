"""Pretraining distillation for real: a masked-language teacher, and what each part of the triple loss is worth.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.pretraining --kinds teacher
    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.pretraining
    python -m benchmarks.pretraining --table docs/results.md   # from the stored results

The teacher is all-MiniLM-L6-v2 with a masked-language head, trained on raw text (the files of `mlm_text_nltk` and
`mlm_text_gutenberg`) until its loss on held-out text (WikiText-2's validation part) falls no more. The students have
3 of its layers and see the same part of that text once, in the same order, with the same masks; without dropout, as
all are far from overfitting. Soft targets are compared at masked positions only (`MaskedLM(positions="masked")`),
which the paper does not do; see docs/recipes/distilbert.md. Each is then fine-tuned plainly on SST-2 and STS-B, with
labels and without a teacher. A repetition (`--pretrainings 1`) begins with a teacher of its own, from another seed;
what is fine-tuned is the first repetition's.
"""

import argparse
import statistics

from pytorch_lightning import Callback, Trainer, seed_everything
from scipy.stats import spearmanr
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.common import CACHE, Store, fit, predict, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    MaskedLM,
    MaskedLMData,
    Relations,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    auto_precision,
    build_student,
)
from lightning_distilbert.report.table import Table, replace_region

STORE = Store("pretraining")
TEACHER_EPOCHS = 2
STUDENT_STEPS = 800  # of 32 sequences: 60 % of a pass
PARTS = 5  # of a pass of the teacher, after each of which its loss on some of the held-out text is taken
KINDS = {
    "triple": "triple loss (soft targets 5, masked language 2, hidden cosine 1)",
    "no-soft": "without the soft targets",
    "no-cosine": "without the hidden cosine",
    "no-mlm": "without the masked-language loss",
    "random": "triple loss, from random weights",
    "relations": "MiniLM relations of the last layer alone (the head is the teacher's)",
    "none": "cut out of the teacher, no pretraining",
}
FINE_TUNING = {
    "SST-2": {"max_steps": 526, "batch": 64, "lr": 1e-4},  # half a pass
    "STS-B": {"max_steps": 540, "batch": 32, "lr": 1e-4},  # three passes
}


def folder(kind, seed):
    """Where the model of a repetition lies; each repetition has a teacher of its own."""
    return CACHE / "pretraining" / f"{kind}-{seed}"


def text(batch_size=32):
    files = [str(root() / name / "*.txt.gz") for name in ("mlm_text_nltk", "mlm_text_gutenberg")]
    held_out = str(root() / "wikitext-2_valid_test_only" / "valid.txt")
    return MaskedLMData(
        {"train": files, "validation": held_out},
        separator="blank_line",
        pack=True,
        batch_size=batch_size,
        max_length=128,
        cache_dir=CACHE / "text",
    )


class Curve(Callback):
    """The held-out loss along the way: has it flattened?"""

    def __init__(self):
        self.losses = []

    def on_validation_epoch_end(self, trainer, module):
        self.losses.append(round(float(trainer.callback_metrics["val/loss"]), 4))


def held_out(module, data):
    trainer = Trainer(precision=auto_precision(), logger=False, enable_checkpointing=False, enable_model_summary=False)
    return {
        name.removeprefix("val/"): value for name, value in trainer.validate(module, data, verbose=False)[0].items()
    }


def terms(kind):
    soft, cosine = SoftTargets(temperature=2.0, weight=5.0), HiddenStates(layers="last", metric="cosine", weight=1.0)
    return {
        "no-soft": ([cosine], 2.0),
        "no-cosine": ([soft], 2.0),
        "no-mlm": ([soft, cosine], 0.0),
        "relations": ([Relations(heads=48)], 0.0),
    }.get(kind, ([soft, cosine], 2.0))


def student(kind, seed):
    if kind != "random":
        return Student(layers=3, dropout=0.0)
    cut = build_student(str(folder("teacher", seed)), layers=3, dropout=0.0, auto_class="AutoModelForMaskedLM")
    config = cut.config.to_dict()
    return Student(config={name: value for name, value in config.items() if name != "initialised_from"})


def pretrain(kind, seed):
    key = f"pretraining/{kind}/{seed}"
    if key in STORE.read():
        return
    seed_everything(seed)
    data, along = text(), Curve()
    if kind == "teacher":
        module = DistillationModule(
            MaskedLM(),
            student=Student(source=pretrained(), layers=6, architecture="same", dropout=0.0),
            learning_rate=7e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
        )
        limits = {
            "max_epochs": TEACHER_EPOCHS,
            "val_check_interval": 1 / PARTS,
            "limit_val_batches": 16,
            "callbacks": [along],
        }
    else:
        objectives, task_weight = terms(kind)
        module = DistillationModule(
            MaskedLM(),
            teacher=str(folder("teacher", seed)),
            student=student(kind, seed),
            objectives=objectives,
            task_weight=task_weight,
            learning_rate=5e-4,
            weight_decay=0.0,
            warmup=0.05,
            betas=(0.9, 0.98),
            eps=1e-6,
        )
        limits = {"max_steps": STUDENT_STEPS, "max_epochs": -1}
    seconds = 0.0 if kind == "none" else fit(module, data, **limits)
    scores = held_out(module, data)
    module.save_student(folder(kind, seed))
    run = {"loss": round(scores["loss"], 4), "accuracy": round(scores["accuracy"], 4), "seconds": round(seconds)}
    STORE.add(key, {**run, "along_the_way": along.losses} if along.losses else run)
    print(f"{key}: held-out loss {scores['loss']:.3f}, accuracy {scores['accuracy']:.3f}, {seconds:.0f} s", flush=True)


def fine_tune(kind, task, seed):
    key = f"{task}/{kind}/{seed}"
    if key in STORE.read():
        return
    settings = FINE_TUNING[task]
    seed_everything(seed)
    if task == "SST-2":
        head, columns = TextClassification(num_labels=2), {"text": "sentence"}
        files = {"train": root() / "glue/SST-2/train.tsv", "validation": root() / "glue/SST-2/dev.tsv"}
    else:
        head = TextClassification(problem_type="regression")
        columns = {"text": ["sentence1", "sentence2"], "label": "score"}
        files = {"train": root() / "glue/STS-B/train.tsv", "validation": root() / "glue/STS-B/dev.tsv"}
    module = DistillationModule(head, student=str(folder(kind, 0)), learning_rate=settings["lr"])
    data = TextClassificationData(files, **columns, batch_size=settings["batch"], seed=seed)
    seconds = fit(module, data, max_steps=settings["max_steps"], max_epochs=-1)
    logits, labels = predict(module, data.val_dataloader())
    if task == "SST-2":
        score = float(MulticlassAccuracy(2, average="micro")(logits, labels))
    else:
        score = float(spearmanr(logits.squeeze(-1), labels).statistic)
    STORE.add(key, {"score": round(score, 4), "seconds": round(seconds)})
    print(f"{key}: {score:.4f} in {seconds:.0f} s", flush=True)


def cell(results, prefix, field):
    values = [run[field] for key, run in results.items() if key.startswith(f"{prefix}/")]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def table(results):
    rows = []
    for kind, title in {"teacher": "teacher, 6 layers", **KINDS}.items():
        if f"pretraining/{kind}/0" not in results:
            continue
        loss = cell(results, f"pretraining/{kind}", "loss")
        rows.append([title, loss, *(cell(results, f"{task}/{kind}", "score") for task in FINE_TUNING)])
    return Table(["model", "held-out masked-language loss", "SST-2 accuracy", "STS-B Spearman"], rows, align="lrrr")


def curve(results):
    """Return a line of the teacher's loss along the way, on the part of the held-out text that was read there."""
    losses = results["pretraining/teacher/0"]["along_the_way"]
    return f"The teacher's loss after each fifth of a pass: {', '.join(f'{loss:.2f}' for loss in losses)}."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["teacher", *KINDS], choices=["teacher", *KINDS])
    parser.add_argument("--pretrainings", nargs="+", type=int, default=[0], help="repetitions, teacher included")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the fine-tuning")
    parser.add_argument("--tasks", nargs="*", default=list(FINE_TUNING), choices=list(FINE_TUNING))
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    arguments = parser.parse_args()
    if arguments.table is None:
        for seed in arguments.pretrainings:
            for kind in arguments.kinds:
                pretrain(kind, seed)
        for task in arguments.tasks:
            for seed in arguments.seeds:
                for kind in arguments.kinds:
                    fine_tune(kind, task, seed)
    results = STORE.read()
    print(table(results).to_text())
    for file in arguments.table or []:
        replace_region(file, "pretraining", f"{table(results).to_markdown()}\n\n{curve(results)}")


if __name__ == "__main__":
    main()
