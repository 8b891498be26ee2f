"""The server: how long a request takes, and how many a second, one by one, from several clients, and in one request.

    OMP_NUM_THREADS=1 python -m benchmarks.serving --table docs/serving.md

all-MiniLM-L6-v2 cut to three layers with a head for two labels, whose weights are random: they do not decide the speed.
As a student in PyTorch, and exported to ONNX in 8 bits. Texts have some 30 tokens. The server has one worker with one
thread; the clients are threads of this process, each with one connection that stays open, and wait for an answer before
they send the next request.
"""

import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.common import pretrained
from lightning_distilbert import DistillationModule, Student, TextClassification, deploy
from lightning_distilbert.report.table import Table, replace_region

WORDS = "a film of the old house that nobody saw and everybody loved with its long slow days by some river".split()
# clients, requests that are answered together, texts in a request
WAYS = ((1, 1, 1), (8, 1, 1), (8, 8, 1), (1, 1, 64))


def texts(number, seed):
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(20, 35))) for _ in range(number)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server in a process of its own, for the time of a block."""

    def __init__(self, folder, join):
        self.port = free_port()
        command = [sys.executable, "-m", "lightning_distilbert.cli", "serve", "--model", str(folder)]
        options = ["--port", str(self.port), "--threads", "1", "--join", str(join), "--accelerator", "cpu"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, *options], **quiet, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit("the server ended by itself: start it by hand to see why")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit("the server was not ready in two minutes")

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(60)

    def ask(self, requests):
        """Send requests one after another; return the seconds of each."""
        connection, spent = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), []
        for inputs in requests:
            body = json.dumps({"inputs": inputs})
            start = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            found = json.loads(connection.getresponse().read())["predictions"]
            spent.append(time.perf_counter() - start)
            assert len(found) == len(inputs)
        return spent


def measure(server, clients, each, number):
    """Return the median and the 95th percentile of a request in milliseconds, and the texts a second."""
    server.ask([texts(each, -1)] * 5)
    found, threads = [], []
    loads = [[texts(each, 1000 * client + i) for i in range(number)] for client in range(clients)]
    start = time.perf_counter()
    for load in loads:
        threads.append(threading.Thread(target=lambda load=load: found.extend(server.ask(load))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    times = sorted(1000 * value for value in found)
    return statistics.median(times), times[int(0.95 * len(times))], clients * number * each / spent


def models(folder):
    torch.manual_seed(0)
    student = Student(source=pretrained(), layers=3, architecture="distilbert")
    module = DistillationModule(TextClassification(num_labels=2), student=student)
    module.student.config.fresh_head = False  # as if it were trained: speed does not depend on weights
    module.save_student(folder / "student")
    deploy.export(folder / "student", folder / "artefact", format="onnx-int8", min_retention=0.0)
    return {"PyTorch": folder / "student", "onnx-int8": folder / "artefact"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--table", nargs="*", default=[], help="also write the table into these files")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(Path(folder)).items():
            for clients, join, each in WAYS:
                with Server(model, join) as server:
                    number = max(5, arguments.requests // (each if each > 1 else clients))
                    median, high, rate = measure(server, clients, each, number)
                rows.append([name, clients, join, each, f"{median:.1f}", f"{high:.1f}", f"{rate:.0f}"])
                print(rows[-1], flush=True)
    columns = [
        "model",
        "clients",
        "answered together",
        "texts in a request",
        "median, ms",
        "95 %, ms",
        "texts a second",
    ]
    table = Table(columns, rows)
    print(table.to_text())
    for file in arguments.table:
        replace_region(file, "serving", table.to_markdown())


if __name__ == "__main__":
    main()
