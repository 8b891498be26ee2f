"""How often students agree with their teacher, on rows that it was trained on and on others.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.agreement --task CoLA

It reads the models that `python -m benchmarks.glue` left in benchmarks/cache (the students of seed 0).
"""

import argparse

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.common import CACHE, root
from benchmarks.glue import TASKS, TITLES
from lightning_distilbert.data import read_rows
from lightning_distilbert.report.table import Table
from lightning_distilbert.tasks.base import call_model

ROWS = 1500


def probabilities(model, tokenizer, texts):
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), 100):
            batch = tokenizer(texts[start : start + 100], padding=True, truncation=True, return_tensors="pt")
            parts.append(call_model(model, batch).logits.softmax(-1))
    return torch.cat(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="CoLA", choices=list(TASKS))
    name = parser.parse_args().task
    tokenizer = AutoTokenizer.from_pretrained(CACHE / name / "teacher")
    models = {kind: AutoModelForSequenceClassification.from_pretrained(CACHE / name / kind).eval() for kind in TITLES}
    table = []
    for split, file in zip(("train", "dev"), TASKS[name]["files"], strict=True):
        rows = read_rows(root() / file, TASKS[name]["columns"])[:ROWS]
        labels = torch.tensor([int(row["label"]) for row in rows])
        found = {
            kind: probabilities(model, tokenizer, [row["sentence"] for row in rows]) for kind, model in models.items()
        }
        teacher = found["teacher"].argmax(-1)
        for kind, p in found.items():
            right, alike = (p.argmax(-1) == labels).float().mean(), (p.argmax(-1) == teacher).float().mean()
            table.append([split, kind, f"{right:.3f}", f"{p.max(-1).values.mean():.3f}", f"{alike:.3f}"])
    columns = ["rows", "model", "right", "mean larger probability", "agrees with the teacher"]
    print(Table(columns, table, align="llrrr").to_markdown())


if __name__ == "__main__":
    main()
