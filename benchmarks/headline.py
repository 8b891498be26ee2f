"""The headline, at full size: BERT-base against DistilBERT, then what bf16, ONNX, OpenVINO and 8 bits add.

    OMP_NUM_THREADS=2 python -m benchmarks.headline --threads 2 --table README.md docs/performance.md

Both models are built from configs and have random weights: speed and size do not depend on them, and nothing here says
what they are good for. The student is cut out of the teacher by `build_student`, and both classify. Every engine
runs the same tokens, in turn, in one process. The speed of the first row is 1.
"""

import argparse
import copy
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from benchmarks.common import pretrained
from lightning_distilbert import DistillationModule, Student, TextClassification, load
from lightning_distilbert.deploy.engines import open_engine
from lightning_distilbert.deploy.export import export
from lightning_distilbert.report.measure import count_parameters, interleaved, size_in_mb
from lightning_distilbert.report.table import Table, replace_region

SHAPES = {"1 x 32": (1, 32), "1 x 128": (1, 128), "32 x 128": (32, 128)}
BLOCK = 5
FORMATS = {
    "onnx": "ONNX Runtime, float32",
    "onnx-int8": "ONNX Runtime, 8 bits",
    "openvino": "OpenVINO, its own choice of precision",
    "openvino-int8": "OpenVINO, 8 bits",
}


def save(folder):
    """Save BERT-base with a head and a tokenizer of its vocabulary, and the student that is cut out of it."""
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(folder / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(pretrained())
    tokenizer.save_pretrained(folder / "teacher")
    module = DistillationModule(
        TextClassification(num_labels=2),
        student=Student(source=str(folder / "teacher"), layers=6),
        tokenizer=str(folder / "teacher"),
    )
    module.save_student(folder / "student")
    return tokenizer


def texts(tokenizer, count=64):
    """Texts of random whole words of the vocabulary, to calibrate 8 bits on."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2)
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(words, size=draw.integers(8, 60))) for _ in range(count)]


def in_torch(model):
    """Return a function that runs a batch in PyTorch."""

    def run(batch):
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits

    return run


def engines(folder, threads):
    """Return what runs each row of the table, and its megabytes."""
    teacher = BertForSequenceClassification.from_pretrained(folder / "teacher").eval()
    student = load(folder / "student").student.eval()
    print(f"parameters: {count_parameters(teacher):,} and {count_parameters(student):,}")
    half = copy.deepcopy(student).bfloat16()
    found = {
        "BERT-base, PyTorch, float32": (in_torch(teacher), size_in_mb(folder / "teacher")),
        "DistilBERT, PyTorch, float32": (in_torch(student), size_in_mb(folder / "student")),
        "DistilBERT, PyTorch, bfloat16": (in_torch(half), size_in_mb(folder / "student") / 2),
    }
    calibration = texts(AutoTokenizer.from_pretrained(folder / "teacher"))
    for kind, name in FORMATS.items():
        rows = calibration if kind == "openvino-int8" else None
        done = export(folder / "student", folder / kind, format=kind, min_retention=0, calibration=rows)
        engine = open_engine(done.folder, done.manifest, threads)
        found[f"DistilBERT, {name}"] = (engine.run, done.size / 1e6)
    return found


def timed(functions, repeats):
    """Return each function's median of seconds, called in turn, a few times in a row.

    The first calls of each turn are not timed: threads of the engine before are still spinning then.
    """
    seconds = {name: [] for name in functions}
    for _ in range(max(1, repeats // BLOCK)):
        for name, function in functions.items():
            seconds[name] += interleaved({name: function}, repeats=min(BLOCK, repeats), warmup=3)[name]
    return {name: statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30, help="of batches of one; of 32, a fifth of it")
    parser.add_argument("--table", nargs="*", default=[], help="write the table into these files")
    parser.add_argument("--region", default="headline", help="the table's name there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder)
        found = engines(folder, options.threads)
        seconds = {}
        for shape, (rows, length) in SHAPES.items():
            ids = draw.integers(1000, 30000, size=(rows, length))
            batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            repeats = options.repeats if rows == 1 else max(3, options.repeats // 5)
            seconds[shape] = timed({name: partial(run, batch) for name, (run, _) in found.items()}, repeats)
    first = next(iter(found))
    body = []
    for name, (_, size) in found.items():
        cells = [f"{1e3 * times[name]:,.1f} ms ({times[first] / times[name]:.1f} x)" for times in seconds.values()]
        body.append([name, f"{size:,.0f}", *cells])
    table = Table(["model and engine", "MB", *SHAPES], body, align="lrrrr")
    print(table.to_text())
    for file in options.table:
        replace_region(file, options.region, table.to_markdown())


if __name__ == "__main__":
    main()
