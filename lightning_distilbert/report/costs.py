"""What it takes to begin: cold start and memory of a model in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_distilbert.errors import DistillationError

# this module is what the process runs: it may import nothing heavy by itself
TEXT = "Where is the city?"
SECOND = "The city is by the water."
PAIRED = ("QuestionAnswering", "Reranking")
ONNX = ("onnx", "onnx-int8")


@dataclass(frozen=True)
class Start:
    """A first answer in a process of its own; the medians of several.

    Attributes:
        seconds: From the start of the process to the first answer.
        parts: How these are made up: ``python`` (until this package's code runs), ``import``, ``load`` and ``answer``.
        peak_mb: The most memory that the process held, in megabytes of 1,000,000 bytes.
    """

    seconds: float
    parts: dict[str, float]
    peak_mb: float


def measure_start(
    folder: str | Path, task: str, format: str, threads: int, config: Mapping[str, Any] | None = None
) -> Start:
    """Load a model in a fresh process and let it answer once.

    An ONNX artefact is run by `lightning_distilbert.deploy.runtime`, without torch; any other model through this
    package. Files are in the page cache, if they have been read before.

    Args:
        folder: The folder of the model.
        task: The name of its task's class.
        format: ``"transformers"``, or that of the artefact.
        threads: Threads of one call.
        config: The task, as `Spec.to_config` describes it, where the folder does not say it.

    Raises:
        DistillationError: If the process fails.
    """
    facts: dict[str, Any] = {"folder": str(Path(folder).absolute()), "format": format, "threads": threads}
    facts |= {"task": task, "config": config}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lightning_distilbert.report.costs", json.dumps(facts | {"began": time.time()})]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DistillationError(
            f"{str(folder)!r} gave no answer in a process of its own (exit status {done.returncode}: {said[:300]}). "
            "To do without cold start and memory: --starts 0, or starts=0."
        )
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def median_start(starts: list[Start]) -> Start:
    """Return the medians of several starts.

    Args:
        starts: At least one.

    Example:
        >>> median_start([Start(2.0, {"load": 1.0}, 90.0), Start(4.0, {"load": 2.0}, 80.0)])
        Start(seconds=3.0, parts={'load': 1.5}, peak_mb=85.0)
    """
    parts = {name: statistics.median(one.parts[name] for one in starts) for name in starts[0].parts}
    seconds, peak = (statistics.median(getattr(one, name) for one in starts) for name in ("seconds", "peak_mb"))
    return Start(seconds, parts, peak)


def peak_memory() -> float:
    """Return the most memory that this process has held, in megabytes of 1,000,000 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says there begins with the memory of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    import resource  # which Windows does not have

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def main(facts: Mapping[str, Any]) -> None:
    """Load a model, let it answer once, and print what that took.

    Args:
        facts: What `measure_start` says of it.
    """
    times = [facts["began"], time.time()]
    if facts["format"] in ONNX:
        from lightning_distilbert.deploy import runtime

        times.append(time.time())
        model: Any = runtime.load(facts["folder"], facts["threads"])
        mask = model.tokenizer.mask_token
    else:
        import torch

        from lightning_distilbert import load
        from lightning_distilbert.deploy import load_artefact
        from lightning_distilbert.spec import from_config

        torch.set_num_threads(facts["threads"])
        times.append(time.time())
        if facts["format"] == "transformers":
            model = load(facts["folder"], task=from_config(facts.get("config"), own_only=True))
        else:
            model = load_artefact(facts["folder"], facts["threads"])
        mask = model.tokenizer.mask_token
    times.append(time.time())
    text = f"{TEXT} {mask}" if facts["task"] == "MaskedLM" else TEXT
    model.predict([(text, SECOND) if facts["task"] in PAIRED else text])
    times.append(time.time())
    spans = [after - before for before, after in itertools.pairwise(times)]
    parts = dict(zip(("python", "import", "load", "answer"), spans, strict=True))
    found = {"seconds": times[-1] - times[0], "parts": parts, "peak_mb": peak_memory()}
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
