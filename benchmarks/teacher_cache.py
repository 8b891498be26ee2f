"""What a teacher cache saves: a training step with a live teacher and with a cached one, in turn.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.teacher_cache

The teacher is all-MiniLM-L6-v2 with a classifier's head (6 layers), the student has 3 of its layers. A step is student,
teacher, loss, backward and optimizer on 32 texts of one length: the median of the rounds in milliseconds of processor
time. The last column is what the cache holds of a text.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from transformers import AutoModelForSequenceClassification

from benchmarks.common import pretrained
from lightning_distilbert import HiddenStates, SoftTargets, Student, Teacher, auto_precision
from lightning_distilbert.engine import Distiller
from lightning_distilbert.report.table import Table, replace_region

LENGTHS, ROWS, BATCHES = (32, 128), 32, 4
OBJECTIVES = {
    "logits": lambda: [SoftTargets()],
    "logits and the last hidden state": lambda: [SoftTargets(), HiddenStates()],
    "logits and all kept layers": lambda: [SoftTargets(), HiddenStates(layers="initialised", metric="mse")],
}


def batch_of(length):
    ids = torch.randint(1000, 30000, (ROWS, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def step(distiller, student, optimizer, batch):
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=auto_precision() == "bf16-mixed"):
        with distiller.watch(student, batch) as taps:
            student(**{name: batch[name] for name in ("input_ids", "attention_mask")})
        loss, _ = distiller.total(None, taps.records)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return 1000 * (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", nargs="*", help="also write the table into these files")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    trainer = Trainer(accelerator="cpu", precision=auto_precision(), logger=False, enable_checkpointing=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = AutoModelForSequenceClassification.from_pretrained(pretrained(), num_labels=2)
        teacher.save_pretrained(f"{folder}/teacher")
        spec = Student(layers=3, source=f"{folder}/teacher", attn_implementation="eager")
        student = spec.build(auto_class="AutoModelForSequenceClassification").train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
        for number, (name, objectives) in enumerate(OBJECTIVES.items()):
            cache = Path(folder) / f"cache-{number}"
            distillers = {}
            for kind, place in (("live", None), ("cached", cache)):
                distillers[kind] = Distiller(Teacher(f"{folder}/teacher", cache=place), objectives())
                distillers[kind].build(student)
                distillers[kind].teacher.prepare(torch.device("cpu"), trainer.precision_plugin)
            for length in LENGTHS:
                before = sum(file.stat().st_size for file in cache.glob("*.rows"))
                batches = [batch_of(length) for _ in range(BATCHES)]
                found = {"first": [step(distillers["cached"], student, optimizer, batch) for batch in batches]}
                size = sum(file.stat().st_size for file in cache.glob("*.rows")) - before
                for _ in range(arguments.rounds):
                    for batch in batches:
                        for kind, distiller in distillers.items():
                            found.setdefault(kind, []).append(step(distiller, student, optimizer, batch))
                live, first, cached = (statistics.median(found[kind]) for kind in ("live", "first", "cached"))
                cells = [f"{live:.0f}", f"{first:.0f}", f"{cached:.0f}", f"{live / cached:.2f} x"]
                rows.append([name, str(length), *cells, f"{size / ROWS / BATCHES / 1000:,.2f} KB"])
    columns = ["compared", "tokens", "live", "the first time", "cached", "a later epoch", "a text"]
    table = Table(columns, rows, align="llrrrrr")
    print(table.to_text())
    for file in arguments.table or []:
        replace_region(file, "teacher-cache", table.to_markdown())


if __name__ == "__main__":
    main()
