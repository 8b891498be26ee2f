"""SST-2 and CoLA: a teacher, students of half its depth without and with distillation, several seeds.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.glue
    python -m benchmarks.glue --table docs/results.md   # write the table from the stored results

The teacher is all-MiniLM-L6-v2 (6 layers), fine-tuned on the task. All students are cut out of that teacher by the same
rule, start from the same weights and see the same batches for the same number of steps. The score is the last epoch's
on the dev set: no checkpoint is chosen by it. Every run is stored with its predictions, so that an interrupted
benchmark goes on and intervals can be computed again.
"""

import argparse
import statistics

import torch
from pytorch_lightning import seed_everything
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.common import CACHE, Store, fit, layerwise, predict, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    Student,
    TextClassification,
    TextClassificationData,
)
from lightning_distilbert.report.bootstrap import bootstrap_interval, paired_bootstrap
from lightning_distilbert.report.measure import count_parameters, latency
from lightning_distilbert.report.table import Table, replace_region

STORE = Store("glue")
TASKS = {
    "SST-2": {
        "files": ("glue/SST-2/train.tsv", "glue/SST-2/dev.tsv"),
        "columns": None,
        "metric": "accuracy",
        "teacher": {"max_epochs": 2, "lr": 5e-5, "batch": 64},
        "student": {"max_steps": 1053, "lr": 1e-4, "batch": 64},  # one pass
        "weights": {"soft_targets": 1.0, "hidden_states": 10.0, "task": 1.0},
        "dropout": None,
    },
    "CoLA": {
        "files": ("glue/CoLA/train.tsv", "glue/CoLA/dev.tsv"),
        "columns": ["source", "label", "mark", "sentence"],
        "metric": "mcc",
        "teacher": {"max_epochs": 5, "lr": 5e-5, "batch": 32},
        "student": {"max_steps": 1072, "lr": 1e-4, "batch": 64},  # eight passes
        "weights": {"soft_targets": 10.0, "hidden_states": 1.0, "task": 0.0},
        "dropout": 0.0,
    },
}
TITLES = {
    "teacher": "teacher, 6 layers",
    "plain": "student, 3 layers, fine-tuned",
    "distilled": "student, 3 layers, distilled",
}


def objectives(weights):
    return layerwise(weights["soft_targets"], weights["hidden_states"])


def accuracy(predictions, labels):
    return (predictions == labels).double().mean()


def mcc(predictions, labels):
    p, y = predictions.double(), labels.double()
    tp, tn = (p * y).sum(), ((1 - p) * (1 - y)).sum()
    fp, fn = (p * (1 - y)).sum(), ((1 - p) * y).sum()
    spread = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
    return (tp * tn - fp * fn) / spread if spread > 0 else torch.tensor(0.0)


METRICS = {"accuracy": accuracy, "mcc": mcc}


def data_of(name, batch, seed):
    task = TASKS[name]
    files = dict(zip(("train", "validation"), (root() / file for file in task["files"]), strict=True))
    return TextClassificationData(files, text="sentence", columns=task["columns"], batch_size=batch, seed=seed)


def run(name, kind, seed, overwrite=False):
    key = f"{name}/{kind}/{seed}"
    if key in STORE.read() and not overwrite:
        return
    task, folder = TASKS[name], CACHE / name / "teacher"
    settings = task["teacher" if kind == "teacher" else "student"]
    common = {"task": TextClassification(num_labels=2, monitor=task["metric"]), "learning_rate": settings["lr"]}
    seed_everything(seed)
    if kind == "teacher":
        module = DistillationModule(student=pretrained(), **common)
    elif kind == "plain":
        module = DistillationModule(student=Student(layers=3, source=str(folder)), **common)
    else:
        module = DistillationModule(
            teacher=str(folder),
            student=Student(layers=3, dropout=task["dropout"]),
            objectives=objectives(task["weights"]),
            task_weight=task["weights"]["task"],
            **common,
        )
    data = data_of(name, settings["batch"], seed)
    limits = {limit: settings[limit] for limit in ("max_epochs", "max_steps") if limit in settings}
    seconds = fit(module, data, **({"max_epochs": -1} | limits))
    logits, labels = predict(module, data.val_dataloader())
    predictions = logits.argmax(-1)
    score = float(METRICS[task["metric"]](predictions, labels))
    if kind == "teacher":
        module.save_student(folder)
    elif seed == 0:
        module.save_student(CACHE / name / kind)
    STORE.add(f"labels/{name}", "".join(map(str, labels.tolist())))
    STORE.add(
        key,
        {
            "score": round(score, 4),
            "seconds": round(seconds),
            "settings": settings,
            "objectives": [o.to_config() for o in module.objectives],
            "predictions": "".join(map(str, predictions.tolist())),
        },
    )
    print(f"{key}: {task['metric']} {score:.4f} in {seconds:.0f} s", flush=True)


def measure():
    """Time teacher and student side by side at batch 1, 32 tokens, in float32."""
    folder = CACHE / "SST-2"
    models = {
        kind: AutoModelForSequenceClassification.from_pretrained(folder / kind).eval()
        for kind in ("teacher", "distilled")
    }
    text = " ".join(["the film is a charming and often affecting journey"] * 6)
    tokenizer = AutoTokenizer.from_pretrained(folder / "distilled")
    inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")

    def forward(model):
        with torch.inference_mode():
            model(**inputs)

    times = latency(
        {kind: lambda model=model: forward(model) for kind, model in models.items()}, repeats=100, warmup=10
    )
    STORE.add(
        "models", {kind: {"parameters": count_parameters(model), **times[kind]} for kind, model in models.items()}
    )


def digits(text):
    return torch.tensor([int(digit) for digit in text])


def over_seeds(metric):
    """Average a metric over the columns of predictions, one for each seed."""
    return lambda p, y: sum(float(metric(p[:, i], y)) for i in range(p.shape[1])) / p.shape[1]


def share_kept(metric):
    """The share of the teacher's score on the same draws of rows."""
    score = over_seeds(metric)
    return lambda p, taught, y: score(p, y) / score(taught, y)


def percents(interval):
    return [100 * value for value in (interval.value, interval.low, interval.high)]


def runs_of(results, name, kind):
    return [results[key] for key in sorted(results) if key.startswith(f"{name}/{kind}/")]


def table(results):
    rows = []
    models = results["models"]
    for name, task in TASKS.items():
        if f"labels/{name}" not in results:
            continue
        metric, labels = METRICS[task["metric"]], digits(results[f"labels/{name}"])
        taught = digits(runs_of(results, name, "teacher")[0]["predictions"]).unsqueeze(1)
        for kind in TITLES:
            runs = runs_of(results, name, kind)
            if not runs:
                continue
            predictions = torch.stack([digits(run["predictions"]) for run in runs], dim=1)
            scores = [run["score"] for run in runs]
            interval = bootstrap_interval([predictions, labels], over_seeds(metric))
            kept = bootstrap_interval([predictions, taught, labels], share_kept(metric))
            cost = models["teacher" if kind == "teacher" else "distilled"]
            rows.append(
                [
                    f"{name} ({task['metric']})",
                    TITLES[kind],
                    f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
                    f"{statistics.stdev(scores):.3f}" if len(scores) > 1 else "",
                    "" if kind == "teacher" else "{:.1f} % [{:.1f}, {:.1f}]".format(*percents(kept)),
                    f"{cost['parameters'] / 1e6:.1f} M",
                    f"{cost['p50_ms']:.1f}",
                ]
            )
    columns = ["task", "model", "dev score [95 %]", "seeds' s.d.", "of the teacher [95 %]", "parameters", "ms, batch 1"]
    return Table(columns, rows, align="llrrrrr")


def margins(results):
    """Say by how much distillation wins: the mean over seeds, and the paired bootstrap over rows with all seeds."""
    lines = []
    for name, task in TASKS.items():
        sides = [
            [digits(run["predictions"]) for run in runs_of(results, name, kind)] for kind in ("distilled", "plain")
        ]
        if not all(sides):
            continue
        labels, metric = digits(results[f"labels/{name}"]), METRICS[task["metric"]]
        d = paired_bootstrap(*([torch.stack(side, dim=1), labels] for side in sides), over_seeds(metric))
        lines.append(
            f"{name}: distilled minus fine-tuned {d.value:+.3f} {task['metric']} "
            f"[{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.3f}, {len(sides[0])} seeds pooled."
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--overwrite", action="store_true", help="run again what is stored")
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    arguments = parser.parse_args()
    if arguments.table is None:
        for name in arguments.tasks:
            if "teacher" in arguments.kinds:
                run(name, "teacher", 0, arguments.overwrite)
            for seed in arguments.seeds:
                for kind in arguments.kinds:
                    if kind != "teacher":
                        run(name, kind, seed, arguments.overwrite)
        if all((CACHE / "SST-2" / kind).is_dir() for kind in ("teacher", "distilled")):
            measure()
    results = STORE.read()
    if "models" not in results:
        return
    print(table(results).to_text())
    print("\n".join(margins(results)))
    for file in arguments.table or []:
        body = "\n".join([table(results).to_markdown(), "", *(f"- {line}" for line in margins(results))])
        replace_region(file, "glue", body)


if __name__ == "__main__":
    main()
