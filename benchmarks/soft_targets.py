"""Time and memory of soft targets over a vocabulary: in chunks of rows against all at once.

    python -m benchmarks.soft_targets

Forward and backward, the two ways in turn. Time is the processor's (other programs do not count) as the median of the
rounds; memory is the peak above what the logits themselves take, as Linux counts it.
"""

import argparse
import ctypes
import statistics
import time
from pathlib import Path

import torch

from lightning_distilbert.functional import forward_kl, soft_targets
from lightning_distilbert.report.table import Table

VOCABULARY = 30_522
TEMPERATURE = 2.0


def at_once(student, teacher):
    student_log, teacher_log = ((x.float() / TEMPERATURE).log_softmax(-1) for x in (student, teacher))
    return TEMPERATURE**2 * forward_kl(student_log, teacher_log).mean()


def in_chunks(student, teacher):
    return soft_targets(student, teacher, TEMPERATURE)


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(loss, student, teacher):
    student.grad = None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to the system, or it would hide what is new
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = status("VmRSS"), time.process_time()
    loss(student, teacher).backward()
    return time.process_time() - start, status("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows = []
    for count in (300, 1500):
        for dtype in (torch.bfloat16, torch.float32):
            student, teacher = (3 * torch.randn(count, VOCABULARY) for _ in range(2))
            student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
            found = {at_once: [], in_chunks: []}
            for number in range(rounds + 1):
                for loss, results in found.items():
                    result = measure(loss, student, teacher)
                    if number:  # the first one warms up
                        results.append(result)
            for loss, results in found.items():
                seconds, mebibytes = (statistics.median(column) for column in zip(*results, strict=True))
                name = str(dtype).removeprefix("torch.")
                rows.append([count, name, loss.__name__, f"{1000 * seconds:.0f}", f"{mebibytes:.0f}"])
    columns = ["rows", "logits", "computed", "ms", "MiB above the logits"]
    print(Table(columns, rows, align="rllrr").to_markdown())


if __name__ == "__main__":
    main()
