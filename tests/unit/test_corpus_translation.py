"""Translating a corpus: complete or not there, resumed where it was, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import DistillationError, DistillationModule
from lightning_distilbert.cli import main
from lightning_distilbert.corpus_translation import _texts, translate_corpus
from tests.parallel_texts import TEXTS, save_translator


@pytest.fixture(scope="module")
def translator(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_translator(tiny_bert_dir, tmp_path_factory.mktemp("tiny") / "translator", epochs=20)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.en"
    path.write_text("\n".join([*TEXTS[:3], "", *TEXTS[3:]]) + "\n", encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(translator: Path, texts: Path, **options: Any) -> list[dict[str, Any]]:
    output = texts.with_name("out.jsonl")
    assert translate_corpus(translator, texts, output, **{"precision": "32-true", **options}) == 5
    assert {path.name for path in texts.parent.iterdir()} <= {"texts.en", "out.jsonl", "rows.jsonl"}
    return lines(output)


def test_blank_texts_are_left_out_and_the_rest_stays_in_order(translator: Path, texts: Path):
    rows = run(translator, texts)
    assert [row["source"] for row in rows] == TEXTS
    assert all(set(row) == {"source", "target"} for row in rows)
    with pytest.raises(DistillationError, match="is there already"):
        run(translator, texts)
    assert run(translator, texts, overwrite=True, rows=2, batch_size=1) == rows


def test_options_reach_the_search(translator: Path, texts: Path):
    calls = []
    short = run(translator, texts, target_length=2)
    assert all(len(row["target"].split()) <= 2 for row in short)

    def predict(module: Any, *arguments: Any) -> list[str]:
        calls.append((module.task.num_beams, module.task.length_penalty, *arguments[1:]))
        return ["x"] * len(arguments[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationModule, "predict", predict)
        run(translator, texts, overwrite=True, num_beams=5, length_penalty=0.5, batch_size=3, max_length=9)
    assert calls == [(5, 0.5, 3, 9)]


def interrupt_after(groups: int, monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
    predict = DistillationModule.predict

    def counted(module: Any, texts: Any, *arguments: Any) -> Any:
        if groups == 0 or len(seen) // 2 >= groups:
            raise KeyboardInterrupt
        seen.extend(texts)
        return predict(module, texts, *arguments)

    monkeypatch.setattr(DistillationModule, "predict", counted)


def test_an_interrupted_run_goes_on_where_it_was(translator: Path, texts: Path):
    whole = run(translator, texts, rows=2)
    output = texts.with_name("out.jsonl")
    output.unlink()
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch, seen)
        with pytest.raises(KeyboardInterrupt):
            run(translator, texts, rows=2)
    assert not output.exists()
    partial = texts.with_name(".out.jsonl.partial")
    assert len(lines(partial)) == 2
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"source": "cut off')
    again: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(9, patch, again)
        assert run(translator, texts, rows=2) == whole
    assert (seen, again) == (TEXTS[:2], TEXTS[2:])


def test_another_run_starts_anew(translator: Path, texts: Path):
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch, seen)
        with pytest.raises(KeyboardInterrupt):
            run(translator, texts, rows=2)
    again: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(9, patch, again)
        run(translator, texts, rows=2, num_beams=1)
    assert again == TEXTS


def test_rows_of_a_file_are_read_too_and_bad_ones_refused(translator: Path, texts: Path, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"en": text}) for text in TEXTS), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert translate_corpus(translator, path, output, text="en", precision="32-true") == 5
    assert lines(output) == run(translator, texts, overwrite=True)
    with pytest.raises(DistillationError, match=r"no column 'source', only \['en'\]. Name it: --text"):
        translate_corpus(translator, path, output, overwrite=True)
    path.write_text('{"source": 3}', encoding="utf-8")
    with pytest.raises(DistillationError, match=r"row 1: 'source' is '3', a int and no text"):
        translate_corpus(translator, path, output, overwrite=True)


def test_what_cannot_be_translated_is_refused(translator: Path, tiny_bert_dir: Path, texts: Path, tmp_path: Path):
    output = tmp_path / "out.jsonl"
    for name in ("num_beams", "batch_size", "rows", "target_length", "max_length"):
        with pytest.raises(DistillationError, match=f"{name}=0"):
            translate_corpus(translator, texts, output, **{name: 0})
    with pytest.raises(DistillationError, match="There is no file"):
        translate_corpus(translator, tmp_path / "nowhere.en", output)
    (tmp_path / "empty.en").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DistillationError, match="holds no text"):
        translate_corpus(translator, tmp_path / "empty.en", output)
    with pytest.raises(DistillationError, match="does not translate"):
        translate_corpus(tiny_bert_dir, texts, output)
    with pytest.raises(DistillationError, match="suffix"):
        translate_corpus(translator, texts, tmp_path / "out.txt")
    assert not output.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device on which no room is left")
def test_a_full_disk_is_one_line(translator: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / ".out.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as stopped:
        main(["translate-corpus", "--model", str(translator), "--input", str(texts),
              "--output", str(tmp_path / "out.jsonl")])  # fmt: skip
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert not (tmp_path / "out.jsonl").exists()


def test_compressed_rows_are_read_by_the_column_that_is_named(tmp_path: Path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "rows.jsonl.zst"
    rows = b'{"text": "other", "en": "a dog"}\n{"text": "another", "en": " "}\n'
    path.write_bytes(zstandard.ZstdCompressor().compress(rows))
    assert list(_texts(path, "en")) == ["a dog"]
