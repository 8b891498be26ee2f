"""`lightning-distilbert augment` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from lightning_distilbert.cli import main
from lightning_distilbert.data.readers import read_rows


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path, tokenizer_dir: Path, vocabulary: list[str]
) -> Path:
    """Return a working folder with a masked language model, an encoder without a head, and two tables."""
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(tmp_path / "mlm")
    (tmp_path / "encoder").symlink_to(tiny_bert_dir)
    lines = [f"the {'great' if i % 2 else 'dull'} movie is number {i}\t{i % 2}" for i in range(12)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    lines = [f"{i};movie story;a long film" for i in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    (tmp_path / "old.jsonl").write_text("mine", encoding="utf-8")
    (tmp_path / "empty.tsv").write_text("sentence\tlabel\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def augment(*more: str, source: str = "train.tsv", output: str = "new.jsonl", text: str = "sentence") -> list[dict]:
    main(["augment", "--input", source, "--output", output, "--text", text, "--overwrite", *more])
    return read_rows(output)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["augment", *arguments])
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.err.startswith("error:")
    assert len(captured.err.splitlines()) == 1
    return captured.err


MLM = ("--model", "mlm", "--precision", "32-true", "--n", "5")


def test_masked_language_model(workplace: Path, capsys: pytest.CaptureFixture[str]):
    rows = augment(*MLM)
    assert f"new.jsonl: {len(rows)} rows, made from 12 rows of train.tsv" in capsys.readouterr().out
    assert 12 * 4 < len(rows) <= 12 * 5
    assert {row["label"] for row in rows} == {None}
    assert all(row["sentence"].startswith("the ") and " is " in row["sentence"] for row in rows)
    assert not any("[" in row["sentence"] or "#" in row["sentence"] for row in rows)
    assert augment(*MLM, "--batch_size", "5") == rows


@pytest.mark.parametrize(
    "more",
    [
        ["--n", "2"], ["--p", "0.9"], ["--k", "2"], ["--seed", "1"], ["--max_length", "14"], ["--no-beside"],
        ["--keep_labels"], ["--with_source"], ["--label", "gold"],
    ],
    ids=lambda more: more[0].lstrip("-"),
)  # fmt: skip
def test_each_option_arrives(more: list[str], workplace: Path):
    assert augment(*MLM, *more) != augment(*MLM)


def test_options_that_leave_this_input_as_it_is(workplace: Path):
    assert augment(*MLM, "--beside", "--header", "--delimiter", "\t", "--method", "mlm") == augment(*MLM)


def test_pairs_of_a_table_without_a_header_by_words_of_the_input(workplace: Path):
    table = ("--columns", "id", "a", "b", "--delimiter", ";", "--text", "b", "--label", "id", "--keep_labels")
    words = ("--method", "words", "--operations", "swap", "--p", "0.5")
    rows = augment(*table, *words, source="pairs.csv", text="a")
    assert {row["a"] for row in rows} == {"movie story", "story movie"}
    assert {row["b"] for row in rows} == {"a long film", "a film long"}
    assert {tuple(row) for row in rows} == {("a", "b", "id")}
    deleted = augment(*table, "--method", "words", "--operations", "delete", source="pairs.csv", text="a")
    assert {row["a"] for row in deleted} == {"movie story", "movie", "story"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", "nowhere.tsv"], "no file 'nowhere.tsv'"),
        (["--input", "empty.tsv"], "empty.tsv holds no rows"),
        (["--text", "gold"], "has no column 'gold'"),
        (["--model", "encoder"], "they would be random"),
        (["--model", "./gone"], "'./gone' does not exist"),
        (["--p", "1.5"], "p=1.5"),
        (["--p", "half"], "argument --p: invalid float value: 'half'"),
        (["--method", "glove"], "'glove': choose one of 'mlm', 'words'"),
        (["--operations", "swap"], "method='mlm' has no option 'operations'"),
        (["--output", "new.tsv"], "holds JSON lines"),
        (["--output", "old.jsonl"], "'old.jsonl' is there already"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line(more: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]):
    good = ["--input", "train.tsv", "--output", "new.jsonl", "--model", "mlm"]
    good += [] if "--text" in more else ["--text", "sentence"]
    assert message in refused(capsys, *good, *more)
    assert not Path("new.jsonl").exists()
    assert Path("old.jsonl").read_text(encoding="utf-8") == "mine"


def test_required_options_and_help(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert "the following arguments are required: --input, --output" in refused(capsys)
    with pytest.raises(SystemExit) as exit_:
        main(["augment", "--help"])
    assert exit_.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "variants drawn of each text (default: 20)" in out
    assert "probability that a word changes (default: 0.4)" in out
    assert "candidates for each word (default: 15)" in out
