"""What padding to a multiple is worth on a CPU: memory and time of training steps on batches of any length.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.padding --table docs/performance.md

A classifier of MiniLM's size (3 layers, width 384) takes batches of 8 texts, of 40 to 200 tokens, in bfloat16. Each way
runs in a process of its own. oneDNN makes code for each shape that it meets, and keeps it.
"""

import argparse
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from lightning_distilbert import Student
from lightning_distilbert.report.table import Table, replace_region

CONFIG = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1536}


def resident():
    """Megabytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def train(multiple, steps):
    """Print the memory before and after the steps, and the seconds of the processor for each 1,000 real tokens."""
    torch.manual_seed(0)
    draw = random.Random(0)
    model = Student(config=CONFIG, dropout=0.0).build(auto_class="AutoModelForSequenceClassification", num_labels=2)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6, fused=True)
    before, start, real = resident(), time.process_time(), 0
    for _ in range(steps):
        length = draw.randint(40, 200)
        real += 8 * length
        padded = -(-length // multiple) * multiple
        mask = (torch.arange(padded) < length).long().expand(8, -1)
        batch = {"input_ids": torch.randint(1000, 30000, (8, padded)), "attention_mask": mask}
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, labels=torch.arange(8) % 2).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(before, resident(), 1000 * (time.process_time() - start) / real)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, help="only take the steps, padded to a multiple of this")
    parser.add_argument("--table", nargs="*", help="also write the table into these files")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.steps)
        return
    found = {multiple: [] for multiple in arguments.multiples}
    for _ in range(arguments.rounds):  # in turn
        for multiple, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.padding", "--train", multiple, "--steps", arguments.steps]
            said = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
            runs.append(list(map(float, said.split()[-3:])))
    rows = []
    for multiple, runs in found.items():
        before, after, seconds = map(statistics.median, zip(*runs, strict=True))
        rows.append([multiple, f"{before:,.0f} MB", f"{after:,.0f} MB", f"{seconds:.2f} s"])
    columns = ["lengths are multiples of", "before", f"after {arguments.steps} steps", "of a processor, 1,000 tokens"]
    table = Table(columns, rows, align="lrrr")
    print(table.to_text())
    for file in arguments.table or []:
        replace_region(file, "padding", table.to_markdown())


if __name__ == "__main__":
    main()
