"""CoNLL-2003: the entities that a teacher and its students find in the test split (testb).

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.conll                      # all that is not stored yet
    python -m benchmarks.conll --kinds teacher                                    # or stage by stage
    python -m benchmarks.conll --kinds plain hidden --seeds 0
    python -m benchmarks.conll --table docs/results.md                            # from the stored results

The teacher is all-MiniLM-L6-v2 (6 layers), fine-tuned on the training split. It reads uncased English: capitals, which
tell most names, are lost to it and to its students, so that no score here compares with those of cased models. The
students of 3 layers are cut out of the teacher with its head, start from the same weights and see the same batches. The
score is that of the last epoch, F1 of whole entities as the CoNLL script counts them: no checkpoint is chosen by it.
Each run is stored with its counts by sentence, so that an interrupted benchmark goes on and intervals are computed
again.
"""

import argparse
import statistics

import torch
from pytorch_lightning import seed_everything

from benchmarks.common import CACHE, Store, drop_no_attention, fit, layerwise, pretrained, root
from lightning_distilbert import (
    Attention,
    DistillationModule,
    Student,
    TokenClassification,
    TokenClassificationData,
    auto_precision,
)
from lightning_distilbert.data import read_conll
from lightning_distilbert.data.tags import entities_of
from lightning_distilbert.prediction import evaluating
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.report.measure import count_parameters
from lightning_distilbert.report.table import Table, replace_region

LABELS = ["O", "B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
COUNTS = ("right", "found", "wanted")
SETTINGS = {"teacher": {"epochs": 3, "lr": 5e-5}, "student": {"epochs": 3, "lr": 1e-4}}
TITLES = {
    "teacher": "teacher",
    "plain": "student, fine-tuned",
    "logits": "student, soft targets",
    "hidden": "student, soft targets and hidden states",
    "attention": "student, soft targets, hidden states and attention",
    "unlabelled": "student, soft targets and hidden states, no labels",
    "textbrewer": "student, the preset textbrewer",
}
DEFAULT = ("teacher", "plain", "logits", "hidden")


def objectives(kind):
    """The terms of a student's loss, and the weight of the labels beside them."""
    soft, hidden = layerwise()
    sets = {
        "logits": ([soft], 1.0),
        "hidden": ([soft, hidden], 1.0),
        "attention": ([soft, hidden, Attention(layers="initialised", weight=0.1)], 1.0),
        "unlabelled": ([soft, hidden], 0.0),
        "textbrewer": ("textbrewer", None),
    }
    return dict(zip(("objectives", "task_weight"), sets[kind], strict=True))


def data_of(seed, batch, limit):
    """The splits, or the first sentences of them."""
    files = {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}
    splits = {split: root() / "conll2003" / name for split, name in files.items()}
    if limit:
        splits = {split: read_conll(path)[:limit] for split, path in splits.items()}
    return TokenClassificationData(
        splits, labels=LABELS, scheme="iob1", batch_size=batch, eval_batch_size=64, max_length=128, seed=seed
    )


def score(module, data):
    """Score the test split, and count the entities of each of its sentences."""
    data.setup("test")
    metrics = module.task.new_metrics()
    with evaluating(module), torch.autocast("cpu", torch.bfloat16, enabled=auto_precision() == "bf16-mixed"):
        for batch in data.test_dataloader():
            module.task.update_metrics(metrics, module(batch), batch)
    found = {name: round(float(value), 4) for name, value in metrics.compute().items()}
    pairs = [(set(entities_of(ours)), set(entities_of(theirs))) for ours, theirs in zip(*metrics.tags(), strict=True)]
    counts = {
        "right": [len(ours & theirs) for ours, theirs in pairs],
        "found": [len(ours) for ours, _ in pairs],
        "wanted": [len(theirs) for _, theirs in pairs],
    }
    types = {kind: round(row["f1"], 4) for kind, row in metrics.per_type.items()}
    # letters take the place of the numbers, as a line a run
    return found | {"types": types, "counts": {name: "".join(map(letter, row)) for name, row in counts.items()}}


def letter(number):
    return chr(ord("0") + number)


def numbers(text):
    return torch.tensor([ord(character) - ord("0") for character in text])


def run(store, kind, seed, arguments):
    key = f"{kind}/{seed}" if kind == "teacher" else f"{kind}/{arguments.layers}/{seed}"
    if key in store.read() and not arguments.overwrite:
        return
    folder = CACHE / store.path.stem / "teacher"
    settings = dict(SETTINGS["teacher" if kind == "teacher" else "student"], batch=32)
    settings["epochs"] = arguments.epochs or settings["epochs"]
    common = {"task": TokenClassification(labels=LABELS), "learning_rate": settings["lr"]}
    seed_everything(seed)
    if kind == "teacher":
        module = DistillationModule(student=pretrained(), **common)
    elif kind == "plain":
        module = DistillationModule(student=Student(layers=arguments.layers, source=str(folder)), **common)
    else:
        student = Student(layers=arguments.layers)
        module = DistillationModule(teacher=str(folder), student=student, **objectives(kind), **common)
    data = data_of(seed, settings["batch"], arguments.limit)
    seconds = fit(drop_no_attention(module), data, max_epochs=settings["epochs"])
    found = score(module, data)
    if kind == "teacher":
        module.save_student(folder)
    store.add(
        key,
        found
        | {
            "seconds": round(seconds),
            "settings": settings,
            "layers": module.student.config.num_hidden_layers,
            "parameters": count_parameters(module.student),
            "objectives": [objective.to_config() for objective in module.objectives],
        },
    )
    print(f"{key}: F1 {found['f1']:.4f} in {seconds:.0f} s", flush=True)


def f1(right, found, wanted):
    """F1 of columns of counts, one column a seed, as the mean over the seeds."""
    totals = [column.double().sum(dim=0) for column in (right, found, wanted)]
    return (2 * totals[0] / (totals[1] + totals[2]).clamp(min=1)).mean()


def columns_of(runs):
    return [torch.stack([numbers(run["counts"][name]) for run in runs], dim=1) for name in COUNTS]


def percent(interval):
    value, low, high = (f"{100 * part:.1f}" for part in interval)
    return f"{value} % [{low}, {high}]"


def table(results):
    teacher = columns_of([results["teacher/0"]])
    body = []
    for kind, title in TITLES.items():
        every = [run for key, run in sorted(results.items()) if key.startswith(f"{kind}/")]
        for layers in sorted({run["layers"] for run in every}, reverse=True):
            runs = [run for run in every if run["layers"] == layers]
            columns = columns_of(runs)
            own = bootstrap_interval(columns, f1)
            kept = bootstrap_interval([*columns, *teacher], lambda *parts: f1(*parts[:3]) / f1(*parts[3:]))
            scores = [run["f1"] for run in runs]
            body.append(
                [
                    title,
                    layers,
                    f"{own.value:.4f} [{own.low:.4f}, {own.high:.4f}]",
                    f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "",
                    "" if kind == "teacher" else percent(kept),
                    f"{statistics.mean(run['exact'] for run in runs):.3f}",
                    f"{runs[0]['parameters'] / 1e6:.1f} M",
                    len(runs),
                ]
            )
    names = ["model", "layers", "testb F1 [95 %]", "seeds' s.d.", "of the teacher [95 %]", "sentences right"]
    return Table([*names, "parameters", "seeds"], body, align="lrrrrrrr")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(DEFAULT), choices=list(TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="in place of the settings' number, for teacher and students alike")
    parser.add_argument("--limit", type=int, help="sentences of each split, for a look; the results are kept apart")
    parser.add_argument("--overwrite", action="store_true", help="run again what is stored")
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    arguments = parser.parse_args()
    store = Store("conll" if arguments.limit is None else "conll-limited")
    if arguments.table is None:
        if "teacher" in arguments.kinds:
            run(store, "teacher", 0, arguments)
        for seed in arguments.seeds:
            for kind in arguments.kinds:
                if kind != "teacher":
                    run(store, kind, seed, arguments)
    results = store.read()
    if "teacher/0" not in results:
        parser.error("there is no teacher yet: run --kinds teacher first")
    print(table(results).to_text())
    for file in arguments.table or []:
        replace_region(file, "conll", table(results).to_markdown())


if __name__ == "__main__":
    main()
