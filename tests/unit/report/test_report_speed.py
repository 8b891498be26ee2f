from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report import speed
from lightning_distilbert.report.contenders import load_contenders
from lightning_distilbert.report.speed import check_lengths, latencies, main_length, throughputs, token_batch


def reads(name: str, longest: int) -> Any:
    return SimpleNamespace(name=name, longest=longest)


def test_lengths_are_those_that_a_model_reads():
    assert check_lengths([reads("a", 512), reads("b", 512)], None) == ([16, 64, 128, 256], [])
    assert check_lengths([reads("a", 64)], None)[0] == [16, 64]
    assert check_lengths([reads("a", 9)], None)[0] == [9]
    assert check_lengths([reads("a", 512)], [128, 8, 128])[0] == [8, 128]


def test_model_that_does_not_read_all_lengths_is_noted():
    lengths, notes = check_lengths([reads("a", 512), reads("b", 100)], None)
    assert lengths == [16, 64, 128, 256]
    assert notes == ["b reads 100 tokens at most: it is not timed at 128 and 256"]


@pytest.mark.parametrize("lengths", [[0], [16, -1], [1.5], [True]])
def test_bad_lengths_are_refused(lengths: list[Any]):
    with pytest.raises(DistillationError, match="each has to be a number of tokens, 1 or more"):
        check_lengths([reads("a", 512)], lengths)


def test_length_that_no_model_reads_is_refused():
    with pytest.raises(DistillationError, match=r"No model reads 600 tokens: a 512, b 100\. Leave lengths above 512"):
        check_lengths([reads("a", 512), reads("b", 100)], [16, 600])


def test_main_length_is_one_that_all_models_read():
    assert main_length([reads("a", 512)], [16, 64, 128, 256]) == 128
    assert main_length([reads("a", 512), reads("b", 100)], [16, 64, 128, 256]) == 64
    assert main_length([reads("a", 512)], [200, 300]) == 200


@pytest.fixture(scope="module")
def contenders(student: Path, teacher: Path, onnx: Path) -> list[Any]:
    return load_contenders({"teacher": teacher, "student": student, "onnx": onnx}, threads=1)


def test_batch_has_what_the_model_takes(contenders: list[Any]):
    batch = token_batch(contenders[0], 3, 9)
    assert {name: tuple(values.shape) for name, values in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (3, 9)
    )
    assert batch["attention_mask"].all()
    assert "token_type_ids" not in token_batch(contenders[1], 1, 2)
    assert not torch.equal(batch["input_ids"], token_batch(contenders[0], 3, 9, seed=1)["input_ids"])


def test_models_are_timed_in_turn_in_blocks_of_which_the_first_call_does_not_count(
    contenders: list[Any], monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[str, tuple[int, ...], bool]] = []
    for one in contenders:
        run = one.module.task.run

        def counted(model: Any, batch: Any, run: Any = run, name: str = one.name) -> Any:
            calls.append((name, tuple(batch["input_ids"].shape), torch.is_grad_enabled() or model.training))
            return run(model, batch)

        monkeypatch.setattr(one.module.task, "run", counted)
    found = latencies(contenders, [4, 8], repeats=7)
    one_round = [name for one in contenders for name in [one.name] * 6]
    rest = [name for one in contenders for name in [one.name] * 3]  # 5 of the 7 were in the first block
    assert [name for name, _, _ in calls] == [*one_round, *rest] * 2
    assert {shape for _, shape, _ in calls} == {(1, 4), (1, 8)}
    assert not any(wrong for _, _, wrong in calls)
    for times in found.values():
        assert list(times) == [4, 8]
        assert all(0 < each["p50"] <= each["p95"] <= each["p99"] for each in times.values())


def test_lengths_above_what_a_model_reads_are_left_out(contenders: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contenders[1].module.tokenizer, "model_max_length", 8)
    found = latencies(contenders, [8, 16], repeats=1)
    assert {name: list(times) for name, times in found.items()} == {"teacher": [8, 16], "student": [8], "onnx": [8, 16]}
    assert sorted(throughputs(contenders, 2, 16, 1)) == ["onnx", "teacher"]


def test_throughput_is_texts_by_the_second(contenders: list[Any], monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("lightning_distilbert.report.measure.time.perf_counter", lambda: next(clock) / 4)
    assert throughputs(contenders[:1], 6, 4, 2) == {"teacher": 24.0}


def test_translation_is_timed_up_to_as_many_tokens_as_the_text_has(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    task = SimpleNamespace(
        auto_class="AutoModelForSeq2SeqLM", generate=lambda model, batch, most: asked.append(most) or batch
    )
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(encoder=SimpleNamespace(vocab_size=9))
    monkeypatch.setattr(model, "forward", lambda input_ids, attention_mask: None)
    module = torch.nn.Module()
    module.task, module.student = task, model
    one = SimpleNamespace(name="a", module=module, longest=64)
    speed.latencies([one], [16, 32], 1)
    assert set(asked) == {16, 32}
