"""What a classifier's head is worth to a DistilBERT cut out of a BERT, before and after a little fine-tuning.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.head --teacher benchmarks/cache/SST-2/teacher

The teacher is a BERT fine-tuned on SST-2, such as `python -m benchmarks.glue` leaves in benchmarks/cache.
"""

import argparse
import os
import random
from pathlib import Path

import torch

from lightning_distilbert.data import read_rows
from lightning_distilbert.folder import load_tokenizer
from lightning_distilbert.loading import load_model
from lightning_distilbert.report.table import Table
from lightning_distilbert.student import build_student

CLASSIFIER = "AutoModelForSequenceClassification"
STEPS = (0, 25, 50, 100)


def encode(tokenizer, rows):
    texts = [row["sentence"] for row in rows]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    batch.pop("token_type_ids", None)
    return batch, torch.tensor([int(row["label"]) for row in rows])


@torch.inference_mode()
def accuracy(model, tokenizer, rows):
    right = 0
    for start in range(0, len(rows), 100):
        batch, labels = encode(tokenizer, rows[start : start + 100])
        right += int((model.eval()(**batch).logits.argmax(-1) == labels).sum())
    return right / len(rows)


def fine_tune(student, tokenizer, train, dev, seed):
    order, found = random.Random(seed), []
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            found.append(accuracy(student, tokenizer, dev))
        batch, labels = encode(tokenizer, order.sample(train, 32))
        torch.nn.functional.cross_entropy(student.train()(**batch).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = Path(os.environ["LIGHTNING_DISTILBERT_DATA"]) / "glue/SST-2"
    train, dev = (read_rows(data / f"{split}.tsv") for split in ("train", "dev"))
    teacher, tokenizer = load_model(options.teacher, CLASSIFIER, whole=True), load_tokenizer(options.teacher)
    print(f"The teacher: {accuracy(teacher, tokenizer, dev):.3f}")
    table = []
    for seed in range(options.seeds):
        for head in ("copied", "fresh"):
            torch.manual_seed(seed)
            student = build_student(teacher, options.layers, auto_class=CLASSIFIER)
            if head == "fresh":
                for layer in (student.pre_classifier, student.classifier):
                    torch.nn.init.normal_(layer.weight, std=student.config.initializer_range)
                    torch.nn.init.zeros_(layer.bias)
            found = fine_tune(student, tokenizer, train, dev, seed)
            table.append([seed, head, *(f"{value:.3f}" for value in found)])
    columns = ["seed", "head", *(f"{step} steps" for step in STEPS)]
    print(Table(columns, table, align="ll" + "r" * len(STEPS)).to_markdown())


if __name__ == "__main__":
    main()
