"""Time and memory of soft targets over a vocabulary: in chunks of rows against all at once.

    python -m benchmarks.soft_targets
    python -m benchmarks.soft_targets --late

Forward and backward, the two ways in turn. Time is the processor's (other programs do not count) as the median of the
rounds; memory is the peak above what the logits themselves take, as Linux counts it. With --late what the logits
are computed from is given: the projection on the vocabulary counts too, and memory is above hidden states and weights.
"""

import argparse
import ctypes
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

from lightning_distilbert.functional import LateLogits, forward_kl, late_forward_kl, late_logits, soft_targets
from lightning_distilbert.report.table import Table

VOCABULARY, WIDTH = 30_522, 768
TEMPERATURE = 2.0


def at_once(student, teacher):
    student_log, teacher_log = ((x.float() / TEMPERATURE).log_softmax(-1) for x in (student, teacher))
    return TEMPERATURE**2 * forward_kl(student_log, teacher_log).mean()


def in_chunks(student, teacher):
    return soft_targets(student, teacher, TEMPERATURE)


def projected(student, teacher):
    """Project all rows on the vocabulary, under autocast as in a fit; then compare them in chunks."""
    with torch.autocast("cpu", torch.bfloat16):
        return in_chunks(student.compute(), teacher.compute().detach())


def late(student, teacher):
    with torch.autocast("cpu", torch.bfloat16):
        return TEMPERATURE**2 * late_forward_kl(student, teacher, TEMPERATURE)


def late_256(student, teacher):
    """The same in parts of 256 rows."""
    with mock.patch.object(late_logits, "LATE_ELEMENTS", 256 * VOCABULARY):
        return late(student, teacher)


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(loss, student, teacher):
    for tensor in (student.hidden, student.weight) if isinstance(student, LateLogits) else (student,):
        tensor.grad = None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to the system, or it would hide what is new
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = status("VmRSS"), time.process_time()
    loss(student, teacher).backward()
    return time.process_time() - start, status("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--late", action="store_true", help="from hidden states on")
    arguments = parser.parse_args()
    rows = []
    for count, dtype, student, teacher in hidden_states() if arguments.late else logits():
        found = {way: [] for way in ((projected, late, late_256) if arguments.late else (at_once, in_chunks))}
        for number in range(arguments.rounds + 1):
            for loss, results in found.items():
                result = measure(loss, student, teacher)
                if number:  # the first one warms up
                    results.append(result)
        for loss, results in found.items():
            seconds, mebibytes = (statistics.median(column) for column in zip(*results, strict=True))
            rows.append([count, dtype, loss.__name__, f"{1000 * seconds:,.0f}", f"{mebibytes:,.0f}"])
    columns = ["rows", "logits", "computed", "ms", "MiB more"]
    print(Table(columns, rows, align="rllrr").to_markdown())


def logits():
    for count in (300, 1500):
        for dtype in (torch.bfloat16, torch.float32):
            student, teacher = (3 * torch.randn(count, VOCABULARY) for _ in range(2))
            yield count, str(dtype).removeprefix("torch."), student.to(dtype).requires_grad_(), teacher.to(dtype)


def hidden_states():
    weight = torch.randn(VOCABULARY, WIDTH) / WIDTH**0.5
    for count in (1500, 8192):
        student, teacher = (LateLogits(torch.randn(count, WIDTH), weight.clone()) for _ in range(2))
        student.hidden.requires_grad_()
        student.weight.requires_grad_()
        teacher.weight = teacher.weight.bfloat16()  # as a fit in bf16-mixed casts it
        yield count, "bfloat16", student, teacher


if __name__ == "__main__":
    main()
