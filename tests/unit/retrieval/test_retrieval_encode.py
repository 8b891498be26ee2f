from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from lightning_distilbert import DistillationModule, Retrieval, Student, TextClassification
from lightning_distilbert.data import padding_share
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval import encode as module_under_test
from lightning_distilbert.retrieval.encode import batches_of, encode_corpus, open_encoder

TEXTS = [" ".join(["the cat is great"] * (1 + 7 * i % 5)) + f" {i}" for i in range(23)] + [""]


@pytest.fixture
def encoder(tiny_bert_dir: Path) -> DistillationModule:
    """Return a module with an untrained student."""
    return DistillationModule(Retrieval(), student=str(tiny_bert_dir))


def one_by_one(module: DistillationModule, texts: list[str], max_length: int = 64) -> np.ndarray:
    """Embed without batches, and so without padding."""
    module.eval()
    with torch.no_grad():
        rows = [module.tokenizer([t], truncation=True, max_length=max_length, return_tensors="pt") for t in texts]
        return torch.cat([module(row)["embedding"] for row in rows]).numpy()


@pytest.mark.parametrize("batch_tokens", [None, 1, 64, 10_000])
def test_vectors_are_in_the_order_of_the_texts(encoder: DistillationModule, batch_tokens: int | None):
    encoder.train()
    found = encode_corpus(encoder, TEXTS, batch_tokens=batch_tokens)
    assert encoder.training
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(encoder, TEXTS), atol=2e-6)


def test_options_change_the_vectors(encoder: DistillationModule):
    base = encode_corpus(encoder, TEXTS)
    short = encode_corpus(encoder, TEXTS, max_length=8)
    np.testing.assert_allclose(short, one_by_one(encoder, TEXTS, 8), atol=2e-6)
    assert np.abs(short - base).max() > 0.01
    half = encode_corpus(encoder, TEXTS, dtype="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, base.astype(np.float16))
    low = encode_corpus(encoder, TEXTS, precision="bf16-mixed")
    assert 0 < np.abs(low - base).max() < 0.1


def test_precision_none_is_what_is_fastest_here(encoder: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    for name in ("32-true", "bf16-mixed"):
        monkeypatch.setattr(module_under_test, "auto_precision", lambda name=name: name)
        np.testing.assert_array_equal(
            encode_corpus(encoder, TEXTS, precision=None), encode_corpus(encoder, TEXTS, precision=name)
        )


def test_batches_keep_to_the_budget_and_pad_little():
    lengths = np.random.default_rng(0).lognormal(3, 0.7, 2000).astype(int) + 2
    batches = list(batches_of(lengths, 2048))
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    assert max(len(batch) * lengths[batch].max() for batch in batches) <= 2048
    assert padding_share(lengths, batches) < 0.06
    longest = [lengths[batch].max() for batch in batches]
    assert longest[0] == lengths.max()
    assert longest != sorted(longest, reverse=True)
    assert batches == list(batches_of(lengths, 2048))
    assert [len(batch) for batch in batches_of(np.array([9, 9]), 5)] == [1, 1]
    assert list(batches_of(np.zeros(0, np.int64), 5)) == []


def test_a_sentence_transformers_folder_is_read_as_it_says(encoder: DistillationModule, tmp_path: Path):
    for name, task in {"cls": Retrieval(pooling="cls"), "raw": Retrieval(normalize=False)}.items():
        folder = DistillationModule(task, student=encoder.student, tokenizer=encoder.tokenizer.name_or_path)
        folder.save_student(tmp_path / name, max_length=20)
        config = json.loads((tmp_path / name / "config.json").read_text())
        del config["lightning_distilbert"]  # a folder of another making
        config["architectures"] = ["BertForMaskedLM"]  # as that of all-mpnet-base-v2 names its former head
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        theirs = SentenceTransformer(str(tmp_path / name), device="cpu").encode(TEXTS, show_progress_bar=False)
        np.testing.assert_allclose(encode_corpus(tmp_path / name, TEXTS), theirs, atol=2e-6)


def test_a_saved_student_is_read_with_its_task(encoder: DistillationModule, tmp_path: Path):
    student = DistillationModule(
        Retrieval(pooling="cls"), teacher=encoder.tokenizer.name_or_path, student=Student(layers=2)
    )
    student.save_student(tmp_path / "student")
    np.testing.assert_allclose(encode_corpus(tmp_path / "student", TEXTS), encode_corpus(student, TEXTS), atol=1e-6)
    assert open_encoder(student) is student


def test_other_models_are_refused(tiny_teacher_dir: Path, tmp_path: Path):
    module = DistillationModule(TextClassification(num_labels=2), student=str(tiny_teacher_dir))
    with pytest.raises(DistillationError, match="The module is of the task TextClassification, which gives no"):
        encode_corpus(module, TEXTS)
    module.save_student(tmp_path / "classifier")
    with pytest.raises(DistillationError, match="classifier is of the task TextClassification"):
        encode_corpus(tmp_path / "classifier", TEXTS)
    with pytest.raises(DistillationError, match="There is no folder 'owner/name'"):
        encode_corpus("owner/name", TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "corpus: there are no texts"),
        ({"texts": [("a", "b")]}, "corpus: there are pairs of texts"),
        ({"texts": "a text"}, "A single text was given"),
        ({"texts": ["a", 3]}, "Entry 1 is 3"),
        ({"dtype": "int8"}, r"encode_corpus\(dtype=...\) was given 'int8'"),
        ({"precision": "16"}, r"encode_corpus\(precision=...\) was given '16'"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"output": "vectors.bin"}, "give it the suffix .npy"),
    ],
)
def test_input_is_checked(encoder: DistillationModule, options: dict, message: str):
    with pytest.raises(DistillationError, match=message):
        encode_corpus(encoder, **{"texts": TEXTS, **options})


def test_a_vector_that_is_not_finite_names_its_text(encoder: DistillationModule):
    with torch.no_grad():
        encoder.student.embeddings.word_embeddings.weight[encoder.tokenizer.convert_tokens_to_ids("dog")] = torch.inf
    with pytest.raises(DistillationError, match=r"corpus: the vector of text 1 \('a dog'\) is NaN or infinite"):
        encode_corpus(encoder, ["a cat", "a dog", "dogs"])


class Stops:
    """A module that stops after some batches, as a run that is killed."""

    def __init__(self, module: DistillationModule, after: int) -> None:
        self.left = after
        self.handle = module.student.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("torn", [0, 5])
def test_an_interrupted_run_goes_on(
    encoder: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: int
):
    monkeypatch.setattr(module_under_test, "SHARD", 8)
    whole = encode_corpus(encoder, TEXTS, output=tmp_path / "whole.npy")
    stop = Stops(encoder, after=2)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy", batch_tokens=2048)
    stop.handle.remove()
    assert not (tmp_path / "corpus.npy").exists()
    partial = tmp_path / ".corpus.npy.partial"
    with partial.open("ab") as file:  # rows of a shard that was not complete, and a piece of one
        file.write(bytes(torn))
    count = Stops(encoder, after=100)
    found = encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy", batch_tokens=2048)
    assert count.left == 99  # of three shards, one batch each, two were there
    np.testing.assert_array_equal(found, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.npy", "corpus.npy.json", "whole.npy", "whole.npy.json",
    ]  # fmt: skip
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable


class Bar:
    """What a progress bar is told."""

    def __init__(self, **options: Any) -> None:
        self.options, self.updates = options, []

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, count: int) -> None:
        self.updates.append(count)


@pytest.mark.parametrize("done", [0, 16])
def test_the_progress_bar_counts_texts_also_those_of_an_interrupted_run(
    encoder: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
):
    monkeypatch.setattr(module_under_test, "SHARD", 8)
    if done:
        stop = Stops(encoder, after=done // 8)
        with pytest.raises(KeyboardInterrupt):
            encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy", batch_tokens=2048)
        stop.handle.remove()
    bars: list[Bar] = []
    monkeypatch.setattr(module_under_test, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy", batch_tokens=2048, name="documents")
    (bar,) = bars
    assert (bar.options["desc"], bar.options["total"], bar.options["initial"]) == ("encode documents", len(TEXTS), done)
    assert done + sum(bar.updates) == len(TEXTS)
    assert len(bar.updates) == (24 - done) // 8  # as batches are done, and not at the end


def test_a_partial_file_of_something_else_is_not_gone_on_with(
    encoder: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module_under_test, "SHARD", 8)
    stop = Stops(encoder, after=2)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy")
    stop.handle.remove()
    other = [*TEXTS[:-1], "another"]
    found = encode_corpus(encoder, other, output=tmp_path / "corpus.npy")
    np.testing.assert_array_equal(found, encode_corpus(encoder, other))


def test_a_finished_file_is_used_again(encoder: DistillationModule, tmp_path: Path):
    first = encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy")
    stop = Stops(encoder, after=0)
    np.testing.assert_array_equal(encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy"), first)
    stop.handle.remove()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"texts": TEXTS[1:]}, "texts"), ({"max_length": 9}, "max_length"), ({"dtype": "float16"}, "dtype"),
        ({"precision": "bf16-mixed"}, "precision"), ({"weights": True}, "model"), ({"pooling": "cls"}, "task"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_finished_file_of_something_else_is_refused(
    encoder: DistillationModule, tmp_path: Path, change: dict, named: str
):
    encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy")
    if "weights" in change:
        with torch.no_grad():
            encoder.student.embeddings.word_embeddings.weight[0] += 1
    encoder.task = Retrieval(pooling=change.get("pooling", "mean"))
    options = {"texts": TEXTS, **{name: value for name, value in change.items() if name not in ("weights", "pooling")}}
    with pytest.raises(DistillationError, match=f"holds vectors made with another {named}. Name another file"):
        encode_corpus(encoder, output=tmp_path / "corpus.npy", **options)
    found = encode_corpus(encoder, output=tmp_path / "corpus.npy", overwrite=True, **options)
    np.testing.assert_array_equal(found, encode_corpus(encoder, **options))
    assert (tmp_path / "corpus.npy").exists()


def test_a_foreign_or_damaged_file_is_refused(encoder: DistillationModule, tmp_path: Path):
    np.save(tmp_path / "mine.npy", np.ones((2, 2)))
    with pytest.raises(DistillationError, match=r"mine\.npy exists and was not made here"):
        encode_corpus(encoder, TEXTS, output=tmp_path / "mine.npy")
    encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy")
    whole = (tmp_path / "corpus.npy").read_bytes()
    (tmp_path / "corpus.npy").write_bytes(whole[:-10])
    with pytest.raises(DistillationError, match=r"corpus\.npy is damaged .* Delete it and run again"):
        encode_corpus(encoder, TEXTS, output=tmp_path / "corpus.npy")
    shutil.rmtree(tmp_path)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_vector_that_is_too_large_for_half_precision_is_an_error(encoder: DistillationModule):
    encoder.task = Retrieval(normalize=False)
    with torch.no_grad():
        encoder.student.encoder.layer[-1].output.LayerNorm.weight *= 1e6
    assert np.isfinite(encode_corpus(encoder, TEXTS)).all()
    with pytest.raises(DistillationError, match="too large for float16"):
        encode_corpus(encoder, TEXTS, dtype="float16")
