from __future__ import annotations

import os
import socket
from pathlib import Path

from lightning_distilbert.report.machine import describe_machine, processor_name, processors, total_memory, versions


def test_machine_is_described_without_its_name():
    found = describe_machine()
    assert {"processor", "processors", "system"} <= set(found)
    assert int(found["processors"]) == processors() >= 1
    assert all(found.values())
    assert socket.gethostname() not in found.values()


def test_processor_is_named_as_linux_names_it(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 9 GHz\nmodel name\t: another\n")
    assert processor_name(str(tmp_path / "cpuinfo")) == "Fast CPU @ 9 GHz"
    assert processor_name(str(tmp_path / "missing"))


def test_processors_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert processors() == 2


def test_memory_that_a_system_does_not_tell_is_left_out(monkeypatch):
    assert total_memory() > 1e8
    monkeypatch.setattr(os, "sysconf", lambda _: (_ for _ in ()).throw(ValueError("unknown")))
    assert total_memory() is None
    assert "memory" not in describe_machine()


def test_missing_packages_have_no_version():
    found = versions(["numpy", "no-such-package"])
    assert list(found) == ["python", "numpy"]
