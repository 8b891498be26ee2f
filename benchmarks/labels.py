"""Where distillation pays: quality against depth and labels, with and without it, and with unlabelled text.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.labels
    python -m benchmarks.labels --table docs/results.md --plot docs/images/labels.png   # from the stored results

AG News: 10,001 rows to train on, 7,600 to test. Of the training rows a share keeps its labels. The teacher
(all-MiniLM-L6-v2, 6 layers) is fine-tuned on the labelled rows alone, so that it knows no more labels than its
students. Each student is cut out of that teacher and trained for the same number of steps in one of three ways: on the
labels; on the labels and the teacher, with the same rows; on the labels and the teacher, with the other rows as
unlabelled text. The score is the last step's on the test set.
"""

import argparse
import random
import statistics

from pytorch_lightning import seed_everything

from benchmarks.common import CACHE, Store, fit, layerwise, predict, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    Student,
    TextClassification,
    TextClassificationData,
)
from lightning_distilbert.report.table import Table, replace_region

LABELS = ["Business", "Sci/Tech", "Sports", "World"]
SHARES = {"100 %": 1.0, "10 %": 0.1, "1 %": 0.01}
DEPTHS = (3, 2, 1)
KINDS = {
    "plain": "labels alone",
    "distilled": "distilled, same rows",
    "unlabelled": "distilled, with unlabelled rows",
}
STEPS = 400  # 1.3 passes over all rows at batch 32
TEACHER_STEPS = {"100 %": 940, "10 %": 320, "1 %": 100}
STORE = Store("labels")


def rows(split):
    lines = (root() / "ag_news" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [dict(zip(("text", "label"), line.rsplit("\t", 1), strict=True)) for line in lines]


def splits(share, unlabelled, seed):
    """Training rows of which a share has labels, drawn by the seed; the others are left out or lose theirs."""
    train = rows("dev")
    random.Random(seed).shuffle(train)
    count = round(share * len(train))
    rest = [{**row, "label": None} for row in train[count:]] if unlabelled else []
    return {"train": train[:count] + rest, "test": rows("test")}


def run(share, kind, depth, seed):
    key = f"{share}/{kind}/{depth}/{seed}"
    if key in STORE.read():
        return
    folder = CACHE / "labels" / f"teacher-{SHARES[share]}-{seed}"
    head = TextClassification(labels=LABELS)
    seed_everything(seed)
    if kind == "teacher":
        module = DistillationModule(head, student=pretrained(), learning_rate=5e-5)
    elif kind == "plain":
        module = DistillationModule(head, student=Student(layers=depth, source=str(folder)), learning_rate=1e-4)
    else:
        module = DistillationModule(
            head,
            teacher=str(folder),
            student=Student(layers=depth),
            objectives=layerwise(),
            learning_rate=1e-4,
        )
    data = TextClassificationData(
        splits(SHARES[share], kind == "unlabelled", seed),
        labels=LABELS,
        batch_size=32,
        eval_batch_size=128,
        max_length=64,
        seed=seed,
    )
    steps = TEACHER_STEPS[share] if kind == "teacher" else STEPS
    seconds = fit(module, data, max_steps=steps, max_epochs=-1)
    data.setup("test")
    logits, labels = predict(module, data.test_dataloader())
    score = float((logits.argmax(-1) == labels).double().mean())
    if kind == "teacher":
        module.save_student(folder)
    STORE.add(key, {"accuracy": round(score, 4), "seconds": round(seconds), "steps": steps})
    print(f"{key}: accuracy {score:.4f} in {seconds:.0f} s", flush=True)


def scores(results, share, kind, depth):
    return [run["accuracy"] for key, run in results.items() if key.startswith(f"{share}/{kind}/{depth}/")]


def cell(values):
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def table(results):
    body = []
    for share in SHARES:
        teacher = cell(scores(results, share, "teacher", 6))
        for depth in DEPTHS:
            kinds = [cell(scores(results, share, kind, depth)) for kind in KINDS]
            if "-" not in kinds[:2]:
                body.append([share, teacher, str(depth), *kinds])
    return Table(["labels", "teacher, 6 layers", "student's layers", *KINDS.values()], body, align="lrrrrr")


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = [share for share in SHARES if scores(results, share, "plain", DEPTHS[-1])]
    figure, axes = pyplot.subplots(
        1, len(shares), squeeze=False, figsize=(1.6 + 2.8 * len(shares), 3.6), sharey=True, layout="constrained"
    )
    styles = {"plain": ("#888888", "o"), "distilled": ("#1f77b4", "s"), "unlabelled": ("#d95f02", "^")}
    axes = axes[0]
    for axis, share in zip(axes, shares, strict=True):
        teacher = scores(results, share, "teacher", 6)
        if teacher:
            axis.axhline(statistics.mean(teacher), color="black", linestyle=":", linewidth=1, label="teacher, 6 layers")
        for kind, title in KINDS.items():
            if kind == "unlabelled" and share == "100 %":
                continue
            measured = {depth: found for depth in DEPTHS if (found := scores(results, share, kind, depth))}
            colour, marker = styles[kind]
            axis.plot(
                list(measured), list(map(statistics.mean, measured.values())), marker=marker, color=colour, label=title
            )
            for depth, found in measured.items():
                axis.plot([depth] * len(found), found, ".", color=colour, markersize=4, alpha=0.5)
        axis.set_title(f"{share} of the labels", fontsize=10)
        axis.set_xlabel("student's layers")
        axis.set_xticks(sorted(DEPTHS))
        axis.set_xlim(min(DEPTHS) - 0.2, max(DEPTHS) + 0.2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on AG News test")
    handles, titles = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, titles, loc="outside lower center", ncols=4 if len(shares) > 1 else 2, frameon=False, fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main():
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS))
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    parser.add_argument("--plot", type=Path, help="only draw the picture into this file")
    arguments = parser.parse_args()
    if arguments.table is None and arguments.plot is None:
        for seed in arguments.seeds:
            for share in arguments.shares:
                run(share, "teacher", 6, seed)
                for depth in arguments.depths:
                    for kind in KINDS:
                        if kind != "unlabelled" or share != "100 %":
                            run(share, kind, depth, seed)
    results = STORE.read()
    print(table(results).to_text())
    for file in arguments.table or []:
        replace_region(file, "labels", table(results).to_markdown())
    if arguments.plot is not None:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
