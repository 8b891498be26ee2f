"""One table of what distillation brings, from the results that the other benchmarks stored.

    python -m benchmarks.summary --table README.md

Of each task the teacher of 6 layers and the student of 3, without and with distillation, after the same steps on the
same labels; means over the seeds. What is not stored is left out.
"""

import argparse
import statistics

from benchmarks.common import Store
from lightning_distilbert.report.table import Table, replace_region

# task, what is counted, store, field, and the keys of teacher, student without distillation and with it
ROWS = (
    (
        "AG News, 10 % of the labels",
        "accuracy",
        "labels",
        "accuracy",
        "10 %/{}",
        ("teacher/6", "plain/3", "unlabelled/3"),
    ),
    (
        "STS-B",
        "Spearman",
        "recipes",
        "score",
        "STS-B/{}",
        ("teacher", "fine-tuned, no dropout", "task recipes, no dropout"),
    ),
    (
        "MRPC",
        "accuracy",
        "recipes",
        "score",
        "MRPC/{}",
        ("teacher", "fine-tuned, no dropout", "task recipes, no dropout"),
    ),
    ("SST-2", "accuracy", "glue", "score", "SST-2/{}", ("teacher", "plain", "distilled")),
    ("CoLA", "Matthews", "glue", "score", "CoLA/{}", ("teacher", "plain", "distilled")),
    ("CoNLL-2003", "entity F1", "conll", "f1", "{}", ("teacher", "plain/3", "hidden/3")),
    ("SQuAD v1.1", "F1", "squad", "f1", "{}", ("teacher", "plain-faster", "faster")),
)
SEARCH = (("SciFact", "scifact"), ("SQuAD-ReQA", "squad"))


def scores(store, field, prefix):
    return [run[field] for key, run in Store(store).read().items() if isinstance(run, dict) and key.startswith(prefix)]


def row(title, metric, values, shares=None):
    teacher, plain, distilled = map(statistics.mean, values)
    seeds = len(values[2])
    kept = [f"{100 * share:.1f} %" for share in shares or (plain / teacher, distilled / teacher)]
    return [title, metric, f"{teacher:.3f}", f"{plain:.3f} ({kept[0]})", f"{distilled:.3f} ({kept[1]})", seeds]


def table():
    rows = []
    for title, metric, store, field, pattern, names in ROWS:
        values = [scores(store, field, pattern.format(name) + "/") for name in names]
        if all(values):
            rows.append(row(title, metric, values))
    found = Store("retrieval").read()
    for title, name in SEARCH:
        runs = [found.get(f"{name}/{system}") for system in ("teacher", "cut", "distilled")]
        if all(runs):
            shares = [run["ndcg@10 of the teacher"][0] for run in runs[1:]]
            rows.append(row(title, "nDCG@10", [[run["ndcg@10"][0]] for run in runs], shares))
    columns = ["task", "score", "teacher, 6 layers", "student, 3 layers", "distilled student, 3 layers", "seeds"]
    return Table(columns, rows, align="llrrrr")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", nargs="*", help="also write the table into these files")
    arguments = parser.parse_args()
    print(table().to_text())
    for file in arguments.table or []:
        replace_region(file, "summary", table().to_markdown())


if __name__ == "__main__":
    main()
