"""SQuAD: a reader of 6 layers, students of 3 without and with distillation, on the dev sets of v1.1 and v2.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.squad --kinds teacher
    python -m benchmarks.squad --kinds plain
    python -m benchmarks.squad --kinds distilled
    python -m benchmarks.squad --table docs/tasks/question-answering.md   # from the stored results
    # what brings a student closer, on some of the questions, with the same teacher
    python -m benchmarks.squad --store squad-tries --kinds teacher
    python -m benchmarks.squad --store squad-tries --limit_train 5000 --kinds distilled attention longer faster
    python -m benchmarks.squad --store squad-tries --table docs/tasks/question-answering.md

The teacher is all-MiniLM-L6-v2 (6 layers), fine-tuned on the part of SQuAD v1.1's training set that is here; questions
whose answer was found by search and stands in more than one place are left out. The students are cut out of that
teacher, start from the same weights and head, and see the same batches for the same number of steps. The score is the
last step's on the whole dev set of v1.1: no checkpoint is chosen by it.

What was tried to come closer: attention scores compared too, four layers in place of three, three times the learning
rate, and twice the passes, in which the teacher's answers come from a cache after the first.

No model here saw a question without an answer. On v2 the threshold is chosen on one half of the dev articles, and the
scores are those on the other half.
"""

import argparse
import random
import statistics
import time

import torch
from pytorch_lightning import seed_everything

from benchmarks.common import CACHE, Store, drop_no_attention, fit, layerwise, pretrained, root
from lightning_distilbert import (
    Attention,
    DistillationModule,
    QuestionAnswering,
    QuestionAnsweringData,
    Student,
    Teacher,
    auto_precision,
)
from lightning_distilbert.data import read_questions
from lightning_distilbert.report.bootstrap import bootstrap_interval, paired_bootstrap
from lightning_distilbert.report.measure import count_parameters
from lightning_distilbert.report.table import Table, replace_region
from lightning_distilbert.tasks.question_answering import to_device

TITLES = {
    "teacher": "teacher, 6 layers",
    "plain": "student, 3 layers, fine-tuned",
    "distilled": "student, 3 layers, distilled",
    "attention": "student, 3 layers, distilled, attention too",
    "longer": "student, 3 layers, distilled, twice the passes",
    "plain-faster": "student, 3 layers, fine-tuned, 3 x the rate",
    "faster": "student, 3 layers, distilled, 3 x the rate",
    "longer-faster": "student, 3 layers, distilled, twice the passes, 3 x the rate",
    "four-plain": "student, 4 layers, fine-tuned",
    "four": "student, 4 layers, distilled",
}
BOTH = ("teacher", "plain", "distilled", "plain-faster", "faster")  # scored on v2 too
BATCH = 32


def training_rows(limit):
    rows = read_questions(root() / "squad" / "train-v1.1-partial.json")
    sure = [r for r in rows if r["offset_certain"] or r["context"].count(r["answers"][0]["text"]) == 1]
    random.Random(0).shuffle(sure)
    return sure[:limit]


def data_of(splits, tokenizer=None, seed=0):
    return QuestionAnsweringData(splits, tokenizer=tokenizer, batch_size=BATCH, eval_batch_size=64, seed=seed)


def evaluate(module, rows, no_answer=False, threshold=None):
    """Return the metric and what it computes, in the precision that the fits use."""
    task = QuestionAnswering(no_answer=no_answer)
    metrics = task.new_metrics()
    metrics.thresholds = {} if threshold is None else {"no_answer": threshold}
    bf16 = auto_precision() == "bf16-mixed"
    module.eval()
    with torch.inference_mode(), torch.autocast(module.device.type, torch.bfloat16, enabled=bf16):
        for batch in data_of({"validation": rows}, module.tokenizer).val_dataloader():
            batch = to_device(batch, module.device)
            task.update_metrics(metrics, module(batch), batch)
    return metrics, {name: float(value) for name, value in metrics.compute().items()}


def halves(rows):
    """Part the questions by article, so that no text is in both halves."""
    titles = sorted({row["title"] for row in rows})
    random.Random(0).shuffle(titles)
    first = set(titles[: len(titles) // 2])
    return [row for row in rows if row["title"] in first], [row for row in rows if row["title"] not in first]


def rate_of(kind, options):
    return options.learning_rate * (3 if "faster" in kind else 1)


def make_module(kind, folder, options):
    ways = kind.split("-")
    common = {"task": QuestionAnswering(), "learning_rate": rate_of(kind, options)}
    if kind == "teacher":
        return DistillationModule(student=pretrained(), **common)
    layers = 4 if "four" in ways else 3
    if "plain" in ways:
        return DistillationModule(student=Student(layers=layers, source=str(folder)), **common)
    soft, hidden, task = options.weights
    objectives = layerwise(soft, hidden, options.temperature)
    if "attention" in ways:
        objectives.append(Attention(layers="initialised", weight=1.0))
    cache = folder.parent / "cache" if "longer" in ways else None
    return DistillationModule(
        teacher=Teacher(str(folder), cache=cache),
        student=Student(layers=layers),
        objectives=objectives,
        task_weight=task,
        **common,
    )


def run(store, kind, seed, options):
    key, folder = f"{kind}/{seed}", CACHE / store.path.stem / "teacher"
    if key in store.read() and not options.overwrite:
        return
    seed_everything(seed)
    module = make_module(kind, folder, options)
    data = data_of({"train": training_rows(options.limit_train)}, seed=seed)
    epochs = 2 * options.epochs if "longer" in kind else options.epochs
    seconds = fit(drop_no_attention(module), data, max_epochs=epochs)
    print(f"{key}: fit in {seconds:.0f} s", flush=True)
    if kind == "teacher" or seed == 0:
        module.save_student(folder.parent / kind)
    start = time.perf_counter()
    metrics, scores = evaluate(module, read_questions(root() / "squad" / "dev-v1.1.json")[: options.limit_dev])
    found = {
        "em": round(scores["em"], 4),
        "f1": round(scores["f1"], 4),
        "per_question": per_question(metrics),
        "questions": {"v1": len(metrics.per_example["f1"])},
        "parameters": count_parameters(module.student),
        "seconds": round(seconds),
        "settings": {name: getattr(options, name) for name in ("weights", "temperature")}
        | {"learning_rate": rate_of(kind, options), "epochs": epochs},
    }
    if kind in BOTH and options.limit_train is None:
        found |= second_version(module, options, found["questions"])
    print(f"{key}: evaluated in {time.perf_counter() - start:.0f} s", flush=True)
    store.add(key, found)
    print(f"{key}: EM {found['em']:.4f}, F1 {found['f1']:.4f}; v2 {found.get('v2')}")


def second_version(module, options, questions):
    """Score a model on one half of v2's dev articles, with the threshold that is best on the other."""
    rows = read_questions(root() / "squad" / "dev-v2.0.json")
    random.Random(0).shuffle(rows)
    chosen_on, scored_on = halves(rows[: options.limit_dev])
    threshold = evaluate(module, chosen_on, no_answer=True)[1]["threshold/no_answer"]
    _, scores = evaluate(module, scored_on, no_answer=True, threshold=threshold)
    none = sum(not row["answers"] for row in scored_on)
    return {
        "threshold": round(threshold, 3),
        "v2": {name: round(value, 4) for name, value in scores.items() if "/" not in name},
        "questions": questions | {"threshold": len(chosen_on), "v2": len(scored_on), "v2 without an answer": none},
    }


def per_question(metrics):
    """F1 of each question in percent, as text."""
    return " ".join(str(round(100 * value)) for value in metrics.per_example["f1"].tolist())


def runs_of(results, kind):
    return [run for key, run in sorted(results.items()) if key.startswith(f"{kind}/")]


def columns_of(runs):
    return torch.tensor([[float(value) / 100 for value in run["per_question"].split()] for run in runs]).T


def mean_of(runs, name):
    return statistics.mean(run["v2"][name] for run in runs)


def tables(results):
    """Return the table of v1.1 and that of v2, in percent, means over seeds."""
    first, second, teacher = [], [], None
    for kind, title in TITLES.items():
        runs = runs_of(results, kind)
        if not runs:
            continue
        f1 = statistics.mean(run["f1"] for run in runs)
        teacher = teacher or f1
        interval = bootstrap_interval(columns_of(runs).mean(dim=1))
        first.append(
            [
                title,
                f"{100 * statistics.mean(run['em'] for run in runs):.1f}",
                f"{100 * f1:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]",
                f"{100 * statistics.stdev([run['f1'] for run in runs]):.1f}" if len(runs) > 1 else "",
                f"{100 * f1 / teacher:.1f} %",
                f"{runs[0]['parameters'] / 1e6:.1f} M",
            ]
        )
        names = ("em", "f1", "has_answer_f1", "no_answer_f1", "best_f1")
        if "v2" in runs[0]:
            second.append([title, *(f"{100 * mean_of(runs, name):.1f}" for name in names if name in runs[0]["v2"])])
    return (
        Table(["v1.1, dev", "EM", "F1 [95 %]", "seeds' s.d.", "of the teacher", "parameters"], first),
        Table(["v2, half of dev", "EM", "F1", "F1, has answer", "F1, none", "F1, best threshold"], second),
    )


def notes(results):
    """Say what the tables are of, and by how much each way wins."""
    runs = runs_of(results, "teacher")
    if not runs:
        return []
    count, settings = runs[0]["questions"], runs[0]["settings"]
    lines = [
        f"v1.1: all {count['v1']:,} questions of the dev set. The teacher was trained on a part of SQuAD's training "
        f"set ({settings['epochs']} passes), so that published scores of models trained on all of it are higher.",
    ]
    distilled = runs_of(results, "distilled")
    for kind, title in TITLES.items():
        other = runs_of(results, kind)
        if kind not in ("teacher", "distilled") and distilled and other:
            d = paired_bootstrap(*(columns_of(side).mean(dim=1) for side in (other, distilled)))
            against = f"{100 * d.value:+.2f} F1 [{100 * d.low:+.2f}, {100 * d.high:+.2f}], p = {d.p_value:.3f}"
            lines.append(f"{title.removeprefix('student, ')}, against the distilled one of 3: {against}.")
    if any("v2" in run for run in distilled):
        lines.append(
            "v2: trained on v1.1 alone, where every question has an answer. That there may be none was not taught; "
            f"the threshold was chosen on {count['threshold']:,} questions of one half of the dev articles, and the "
            f"scores are those on the {count['v2']:,} questions of the other half. To answer nothing there scores "
            f"{100 * count['v2 without an answer'] / count['v2']:.1f}."
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--kinds", nargs="+", default=list(TITLES)[:3], choices=list(TITLES), help="the stages to run")
    add("--seeds", nargs="+", type=int, default=[0], help="of the students; the teacher is made once")
    add("--epochs", type=int, default=2)
    add("--learning_rate", type=float, default=1e-4)
    add("--weights", nargs=3, type=float, default=[1.0, 10.0, 1.0], help="of soft targets, hidden states and task")
    add("--temperature", type=float, default=2.0)
    add("--limit_train", type=int, help="so many questions to train on; scored on v1.1 alone")
    add("--limit_dev", type=int, help="so many questions to evaluate on")
    add("--store", default="squad", help="name of the results")
    add("--overwrite", action="store_true", help="run again what is stored")
    add("--table", nargs="*", help="only write the tables into these files")
    options = parser.parse_args()
    store = Store(options.store)
    if options.table is None:
        for kind in options.kinds:
            for seed in [0] if kind == "teacher" else options.seeds:
                run(store, kind, seed, options)
    results = store.read()
    found = [table for table in tables(results) if len(table.rows) > 1]
    print("\n".join([*(f"{table.to_text()}\n" for table in found), *notes(results)]))
    for file in options.table or []:
        parts = [*(f"{table.to_markdown()}\n" for table in found), *(f"- {line}" for line in notes(results))]
        replace_region(file, options.store, "\n".join(parts))


if __name__ == "__main__":
    main()
