"""How attention is computed while a student trains on a CPU: PyTorch's fused attention against plain matrix products.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.attention

One step (forward, backward, optimizer) of a classifier of MiniLM's size (3 layers, width 384) in batches of 2,048
tokens, all ways in turn; the median of the rounds, in milliseconds of processor time.
"""

import argparse
import contextlib
import statistics
import time

import torch

from lightning_distilbert import Student
from lightning_distilbert.precision import FLOAT32_ATTENTION
from lightning_distilbert.report.table import Table, replace_region

CONFIG = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1536}
LENGTHS = (32, 128, 384)
TOKENS = 2048


def student(attention, dropout):
    built = Student(config=CONFIG, dropout=dropout, attn_implementation=attention)
    return built.build(auto_class="AutoModelForSequenceClassification", num_labels=2).train()


def step(model, optimizer, batch, bf16):
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--table", nargs="*", help="also write the table into these files")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ways = [(attention, dropout) for dropout in (0.1, 0.0) for attention in ("sdpa", "eager")]
    ways.append((FLOAT32_ATTENTION, 0.0))
    models = {way: student(*way) for way in ways}
    optimizers = {way: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) for way, model in models.items()}
    rows = []
    for bf16 in (True, False):
        for length in LENGTHS:
            size = TOKENS // length
            batch = {
                "input_ids": torch.randint(1000, 30000, (size, length)),
                "attention_mask": (torch.arange(length) < length - torch.arange(size)[:, None]).long(),
                "labels": torch.arange(size) % 2,
            }
            found = {way: [] for way in ways}
            for number in range(arguments.rounds + 1):
                for way in ways:
                    seconds = step(models[way], optimizers[way], batch, bf16)
                    if number:  # the first one warms up
                        found[way].append(1000 * seconds)
            cells = [f"{statistics.median(found[way]):.0f}" for way in ways]
            rows.append(["bf16-mixed" if bf16 else "float32", f"{size} x {length}", *cells])
    columns = ["precision", "batch", *(f"{attention}, dropout {dropout}" for attention, dropout in ways)]
    table = Table(columns, rows, align="llrrrrr")
    print(table.to_text())
    for file in arguments.table or []:
        replace_region(file, "attention", table.to_markdown())


if __name__ == "__main__":
    main()
