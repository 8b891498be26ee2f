"""Each recipe's objectives on the same tasks, students and steps, against no distillation.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.recipes
    python -m benchmarks.recipes --table docs/results.md   # from the stored results
    # which rate the students need, on a tenth of the training rows that neither teacher nor students see
    python -m benchmarks.recipes --hold_out 1e-4 3e-4 --seeds 0 --tasks MRPC STS-B --recipes fine-tuned "close + labels"

The teacher is all-MiniLM-L6-v2 (6 layers), fine-tuned on the task. Each student is cut out of it (3 layers) and takes
the same number of steps; recipes of two stages share them half and half. Two more take four times as many, one of them
with the pairs of sentences of the other tasks as unlabelled text. The score is the last step's on the dev set.
"""

import argparse
import csv
import functools
import statistics

from pytorch_lightning import seed_everything
from torchmetrics.functional import spearman_corrcoef

from benchmarks.common import CACHE, Store, fit, layerwise, predict, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    Student,
    Teacher,
    TextClassification,
    TextClassificationData,
)
from lightning_distilbert.objectives.presets import resolve_objectives
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.report.table import Table, replace_region

HELD_OUT = "recipes-held-out"
RATE = 1e-4
TASKS = {
    "MRPC": {"text": ["#1 String", "#2 String"], "label": "Quality", "teacher": 460, "student": 345, "batch": 32},
    "RTE": {"text": ["sentence1", "sentence2"], "label": "label", "teacher": 390, "student": 312, "batch": 32},
    "STS-B": {"text": ["sentence1", "sentence2"], "label": "score", "teacher": 540, "student": 540, "batch": 32},
    "SST-2": {"text": "sentence", "label": "label", "teacher": 2106, "student": 1053, "batch": 64},
}
NAMES = {"RTE": ["entailment", "not_entailment"], "MRPC": ["0", "1"], "SST-2": ["0", "1"]}


closely = functools.partial(layerwise, soft=10.0, hidden=1.0)


def every(preset):
    """The objectives of a preset on its paper's map of layers, whatever the student's layers were copied from."""
    options = [objective.to_config() for objective in resolve_objectives(preset).objectives]
    for option in options:
        if "layers" in option["init_args"]:
            option["init_args"]["layers"] = "every"
    return options


# the stages of each recipe: objectives (None fine-tunes), the weight of the task loss (None is the preset's), dropout
RECIPES = {
    "fine-tuned": [(None, None, None)],
    "fine-tuned, no dropout": [(None, None, 0.0)],
    "logits": [("logits", None, None)],
    "distilbert": [("distilbert", None, None)],
    "tinybert": [("tinybert", None, None), ("tinybert-prediction", None, None)],
    "tinybert, map every": [(functools.partial(every, "tinybert"), 0.0, None), ("tinybert-prediction", None, None)],
    "minilm": [("minilm", None, None), (None, None, None)],
    "textbrewer": [("textbrewer", None, None)],
    "textbrewer, map every": [(functools.partial(every, "textbrewer"), 0.0, None)],
    "patient": [("patient", None, None)],
    "task recipes": [(layerwise, 1.0, None)],
    "task recipes, no dropout": [(layerwise, 1.0, 0.0)],
    "close": [(closely, 0.0, 0.0)],
    "close + labels": [(closely, 1.0, 0.0)],
    "close + labels, dropout": [(closely, 1.0, None)],
    "task recipes, no dropout, 4 x steps": [(layerwise, 1.0, 0.0)],
    "task recipes, no dropout, 4 x steps, unlabelled pairs": [(layerwise, 1.0, 0.0)],
}
PAIRS = ("MRPC", "RTE", "STS-B")
LONG = {name: PAIRS for name in RECIPES if "4 x" in name}  # the tasks that they are for


UNCACHED = ("tinybert", "tinybert, map every", "minilm")  # a teacher's cache holds no attention


def teacher_of(folder, recipe):
    """The teacher; what it says is kept for the later passes and the other seeds."""
    cache = None if recipe in UNCACHED else folder.with_name(f"{folder.name}-says") / recipe.replace(" ", "-")
    return Teacher(str(folder), cache=cache)


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).double().mean()


def spearman(logits, labels):
    return spearman_corrcoef(logits.squeeze(-1), labels.float())


def head_of(name):
    if name == "STS-B":
        return TextClassification(problem_type="regression")
    return TextClassification(labels=NAMES[name])


def rows_of(name, split="train"):
    with open(root() / f"glue/{name}/{split}.tsv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def splits_of(name, hold_out):
    """Train and validation: the task's own, or parts of the training rows, every tenth held out."""
    if not hold_out:
        return {"train": root() / f"glue/{name}/train.tsv", "validation": root() / f"glue/{name}/dev.tsv"}
    rows = rows_of(name)
    return {"train": [row for i, row in enumerate(rows) if i % 10], "validation": rows[::10]}


def other_pairs(name):
    """Training pairs of the other tasks, in the columns of this one."""
    pairs = [
        [row[column] for column in TASKS[other]["text"]] for other in PAIRS if other != name for row in rows_of(other)
    ]
    return [dict(zip(TASKS[name]["text"], pair, strict=True)) for pair in pairs]


def run(store, name, recipe, seed, rate=None):
    """Run a recipe; at a rate that is given, on nine tenths of the training rows."""
    key = f"{name}/{recipe}/{seed}" if rate is None else f"{name}/{recipe} at {rate:g}/{seed}"
    if key in store.read() or name not in LONG.get(recipe, TASKS):
        return
    task, folder = TASKS[name], CACHE / store.path.stem / f"{name}-teacher"
    columns = {"text": task["text"], "label": task["label"]}
    unlabelled = other_pairs(name) if recipe.endswith("unlabelled pairs") else None
    splits = splits_of(name, store.path.stem == HELD_OUT)
    data = TextClassificationData(splits, **columns, batch_size=task["batch"], seed=seed, unlabelled=unlabelled)
    seed_everything(seed)
    seconds, model = 0.0, None
    if recipe == "teacher":
        module = DistillationModule(head_of(name), student=pretrained(), learning_rate=5e-5)
        seconds = fit(module, data, max_steps=task["teacher"], max_epochs=-1)
        module.save_student(folder)
    else:
        stages, times = RECIPES[recipe], 4 if recipe in LONG else 1
        for objectives, task_weight, dropout in stages:
            spec = Student(layers=3, source=str(folder), dropout=dropout)
            module = DistillationModule(
                head_of(name),
                teacher=None if objectives is None else teacher_of(folder, recipe),
                student=spec if model is None else model,
                objectives=objectives() if callable(objectives) else objectives or "default",
                task_weight=task_weight,
                learning_rate=rate or RATE,
                tokenizer=str(folder),
            )
            model = module.student
            seconds += fit(module, data, max_steps=times * task["student"] // len(stages), max_epochs=-1)
    logits, labels = predict(module, data.val_dataloader())
    metric = spearman if name == "STS-B" else accuracy
    interval = bootstrap_interval([logits, labels], lambda z, y: float(metric(z, y)))
    run = {"score": interval.value, "low": interval.low, "high": interval.high, "seconds": seconds}
    store.add(key, {field: round(float(value), 4) for field, value in run.items()})
    print(f"{key}: {interval.value:.4f} in {seconds:.0f} s", flush=True)


def majority(store, name):
    """Store what an answer that is always the commonest label would score on the dev rows."""
    key, label = f"{name}/majority/0", TASKS[name]["label"]
    if name == "STS-B" or store.path.stem == HELD_OUT or key in store.read():
        return
    labels = [row[label] for row in rows_of(name, "dev")]
    store.add(key, {"score": round(labels.count(statistics.mode(labels)) / len(labels), 4)})


def names_of(results):
    """The recipes of the results, in their order; each rate that was tried on its own."""
    found = sorted({key.split("/")[1] for key in results} - {"teacher", "majority"})
    return sorted(found, key=lambda name: list(RECIPES).index(name.split(" at ")[0]))


def runs_of(results, name, recipe):
    return [run for key, run in sorted(results.items()) if key.startswith(f"{name}/{recipe}/")]


def table(results):
    rows = []
    for recipe in ("majority", "teacher", *names_of(results)):
        cells, kept = [], []
        for name in TASKS:
            runs, teacher = runs_of(results, name, recipe), runs_of(results, name, "teacher")
            if not runs:
                cells.append("-")
                continue
            scores = [run["score"] for run in runs]
            mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else None
            if name != "RTE":  # its 277 dev rows decide nothing
                kept.append(mean / teacher[0]["score"])
            cells.append(f"{mean:.3f}" + (f" ± {spread:.3f} ({len(scores)})" if spread is not None else ""))
        whole = len(kept) == len(TASKS) - 1
        rows.append([recipe, *cells, f"{100 * statistics.mean(kept):.1f} %" if whole else "-"])
    return Table(["recipe", *TASKS, "of the teacher, mean without RTE"], rows, align="lrrrrr")


def retention(results):
    """What each recipe keeps of the teacher's score in percent, and the interval of its own score as such a share."""
    rows = []
    for recipe in names_of(results):
        cells = []
        for name in TASKS:
            runs, teacher = runs_of(results, name, recipe), runs_of(results, name, "teacher")
            kept = [
                100 * statistics.mean(run[field] for run in runs) / teacher[0]["score"] if runs else 0.0
                for field in ("score", "low", "high")
            ]
            cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*kept) if runs else "-")
        rows.append([recipe, *cells])
    return Table(["of the teacher, %", *TASKS], rows, align="lrrrr")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--hold_out", nargs="+", type=float, help="rates to try on nine tenths of the training rows")
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    arguments = parser.parse_args()
    store = Store(HELD_OUT if arguments.hold_out else "recipes")
    if arguments.table is None:
        for name in arguments.tasks:
            majority(store, name)
            run(store, name, "teacher", 0)
            for seed in arguments.seeds:
                for recipe in arguments.recipes:
                    for rate in arguments.hold_out or [None]:
                        run(store, name, recipe, seed, rate)
    results = store.read()
    tables = [table(results), retention(results)]
    print("\n\n".join(one.to_text() for one in tables))
    for file in arguments.table or []:
        replace_region(file, store.path.stem, "\n\n".join(one.to_markdown() for one in tables))


if __name__ == "__main__":
    main()
