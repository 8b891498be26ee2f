from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from lightning_distilbert.data import corpus as module
from lightning_distilbert.data.corpus import Corpus, Sequences, build_corpus, tokenizer_fingerprint
from lightning_distilbert.data.text_files import Rows, text_parts
from lightning_distilbert.errors import DistillationError
from tests.tokenizers_of_kinds import make_tokenizers

pytest.importorskip("datasets")

WORDS = "film movie story actor plot scene music good great fine best bad poor worst dull bright".split()


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def some_texts(number: int = 60, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 40))) for _ in range(number)]


def rows_of(corpus: Corpus) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in corpus[list(range(len(corpus)))]]


def reference(tokenizer, texts: list[str], max_length: int, min_length: int, max_unknown: float = 0.5):
    """Cut, wrap and drop as lm_seqs_dataset.py of the original code does, on whole sequences of one text each."""
    kept = []
    for text in texts:
        ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        pieces = [ids]
        if len(ids) > max_length:
            pieces = []
            for start in range(0, len(ids), max_length - 2):
                piece = ids[start : start + max_length - 2]
                if piece[0] != tokenizer.cls_token_id:
                    piece = [tokenizer.cls_token_id, *piece]
                if piece[-1] != tokenizer.sep_token_id:
                    piece = [*piece, tokenizer.sep_token_id]
                pieces.append(piece)
        for piece in pieces:
            if len(piece) >= min_length and piece.count(tokenizer.unk_token_id) / len(piece) < max_unknown:
                kept.append(piece)
    return kept


def test_short_texts_become_what_the_original_code_makes_of_them(tokenizer):
    texts = [text for text in some_texts() if len(text.split()) <= 30] + ["\u4e00 \u4e8c film", "film " * 9]
    made = Sequences(tokenizer, max_length=32, min_length=12)(texts)
    ends = np.cumsum(made["lengths"])
    rows = [made["input_ids"][end - size : end].tolist() for end, size in zip(ends, made["lengths"], strict=True)]
    assert rows == reference(tokenizer, texts, 32, 12)
    assert made["texts"] == len(texts)
    assert made["tokens"] == sum(map(len, rows))
    assert made["short"] == len(texts) - len(rows)
    assert made["short_tokens"] == sum(len(tokenizer(text)["input_ids"]) - 2 for text in texts) - sum(
        len(row) - 2 for row in rows
    )


def test_long_texts_are_cut_into_pieces_that_hold_every_token(tokenizer):
    text = " ".join(np.random.default_rng(0).choice(WORDS, 100))
    made = Sequences(tokenizer, max_length=32, min_length=3)([text])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made["lengths"].tolist() == [32, 32, 32, 12]
    pieces = np.split(made["input_ids"], np.cumsum(made["lengths"])[:-1])
    assert all(piece[0] == tokenizer.cls_token_id and piece[-1] == tokenizer.sep_token_id for piece in pieces)
    assert np.concatenate([piece[1:-1] for piece in pieces]).tolist() == ids
    assert Sequences(tokenizer, max_length=32, min_length=13)([text])["short"] == 1


def test_mostly_unknown_sequences_are_dropped(tokenizer):
    texts = ["film \u4e00 \u4e00 \u4e00 \u4e00", "film film \u4e00 \u4e00"]  # 4 of 7, 2 of 6
    made = Sequences(tokenizer, min_length=3)(texts)
    assert (made["unknown"], made["lengths"].tolist()) == (1, [6])
    assert Sequences(tokenizer, min_length=3, max_unknown=0.3)(texts)["unknown"] == 2
    assert Sequences(tokenizer, min_length=3, max_unknown=1.0)(texts)["unknown"] == 0


def test_packing_joins_whole_texts_of_a_document(tokenizer):
    def lengths(texts, **options):
        return Sequences(tokenizer, max_length=12, min_length=3, **options)(texts)["lengths"].tolist()

    texts = ["film " * 4, "film " * 5, "film " * 2, "", "film " * 3, "film " * 13, "film " * 2]
    assert lengths(texts) == [6, 7, 4, 5, 12, 5, 4]
    # 4 + 5 fit into 10, 2 more do not; a document ends; 13 are cut, and its rest goes on with the next text
    assert lengths(texts, pack=True) == [11, 4, 5, 12, 7]
    tokens = Sequences(tokenizer, max_length=12, min_length=3, pack=True)(texts)["input_ids"]
    film = tokenizer.convert_tokens_to_ids("film")
    assert (tokens == film).sum() == 4 + 5 + 2 + 3 + 13 + 2


@pytest.mark.parametrize("kind", ["bert-uncased", "roberta", "roberta-prefix", "xlm-roberta"])
def test_packed_texts_are_parted_by_a_space(kind):
    tokenizer = make_tokenizers()[kind]
    texts = ["who was in", "the city tower", "", "the answer"]
    made = Sequences(tokenizer, max_length=64, min_length=3, pack=True)(texts)
    whole = [*tokenizer("who was in the city tower")["input_ids"], *tokenizer("the answer")["input_ids"]]
    assert made["input_ids"].tolist() == whole
    options = Sequences(tokenizer, min_length=3, pack=True).options()
    assert options.get("glue") == (" " if kind == "roberta" else None)  # caches of before are of other tokens
    assert "glue" not in Sequences(tokenizer, min_length=3).options()


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_corpus_is_what_its_texts_make_however_many_processes(tmp_path, tokenizer, num_proc, monkeypatch):
    monkeypatch.setattr("lightning_distilbert.data.text_files.CHUNK_TEXTS", 7)
    texts = some_texts()
    sequences = Sequences(tokenizer, max_length=20, min_length=5)
    corpus = build_corpus([Rows([{"text": text} for text in texts])], sequences, tmp_path, num_proc)
    made = sequences(texts)
    assert np.concatenate(rows_of(corpus)).tolist() == made["input_ids"].tolist()
    assert corpus.lengths.tolist() == made["lengths"].tolist()
    assert len(corpus) == len(made["lengths"]) == corpus.manifest["rows"]
    for name in ("texts", "tokens", "short", "short_tokens", "unknown"):
        assert corpus.manifest[name] == made[name]
    assert corpus.counts().tolist() == np.bincount(made["input_ids"], minlength=len(tokenizer)).tolist()
    assert corpus[3]["input_ids"].dtype == np.uint16
    assert not corpus[3]["input_ids"].flags.owndata  # a view of the file
    assert [path.name for path in tmp_path.iterdir()] == [corpus.folder.name]  # neither texts nor temporary files
    names = {path.name for path in corpus.folder.iterdir()}
    assert names == {*corpus.manifest["files"], "corpus.json"}


def test_the_progress_bar_says_what_is_tokenised(tmp_path, tokenizer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    call, told = datasets.Dataset.map, []
    monkeypatch.setattr(
        datasets.Dataset, "map", lambda self, *args, **options: told.append(options) or call(self, *args, **options)
    )
    build_corpus([Rows([{"text": text} for text in some_texts()])], Sequences(tokenizer), tmp_path, name="train")
    assert [options["desc"] for options in told] == ["tokenise train"]


def test_rows_are_selected_and_sent_to_other_processes(tmp_path, tokenizer):
    corpus = build_corpus([Rows([{"text": text} for text in some_texts()])], Sequences(tokenizer), tmp_path)
    part = corpus.select(np.array([4, 1, 2])).select(np.array([2, 0]))
    assert rows_of(part) == [rows_of(corpus)[2], rows_of(corpus)[4]]
    assert [row["row"] for row in part[[0, 1]]] == [2, 4]
    sent = pickle.dumps(part)
    assert len(sent) < 1500  # the folder, and not what is in it
    assert rows_of(pickle.loads(sent)) == rows_of(part)
    assert pickle.loads(sent).lengths.tolist() == part.lengths.tolist()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(some_texts()))
    return path


def test_a_cache_is_found_again_and_made_anew_where_something_changed(tmp_path, tokenizer, file, monkeypatch):
    cache = tmp_path / "cache"

    def build(**options):
        parts = text_parts(file, separator=options.pop("separator", "line"))
        return build_corpus(parts, Sequences(options.pop("tokenizer", tokenizer), **options), cache)

    first = build()
    tokenizer("a call that leaves truncation and padding behind", truncation=True, padding=True, max_length=5)
    with monkeypatch.context() as patch:
        patch.setattr(Sequences, "__call__", None)  # nothing is tokenised
        again = build()
    assert (again.folder, rows_of(again)) == (first.folder, rows_of(first))
    other = BertTokenizer(vocab={**tokenizer.get_vocab(), "new": len(tokenizer)}, model_max_length=64)
    upper = BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=64, do_lower_case=False)
    options = [
        {"max_length": 64},
        {"min_length": 20},
        {"max_unknown": 0.1},
        {"pack": True},
        {"separator": "blank_line"},
    ]
    folders = {build(**option).folder for option in [*options, {"tokenizer": other}, {"tokenizer": upper}]}
    assert len(folders | {first.folder}) == 8
    file.write_text(file.read_text().replace("film", "scene"))
    assert build().folder not in folders | {first.folder}


def test_a_tokenizer_is_told_by_its_content(tokenizer):
    same = BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=64)
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer)
    same.add_special_tokens({"additional_special_tokens": ["[NEW]"]})
    assert tokenizer_fingerprint(same) != tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("stage", ["tokenise", "count", "write"])
def test_an_interrupted_build_leaves_nothing(tmp_path, tokenizer, file, monkeypatch, stage: str):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    place = {"tokenise": (module._Tokenise, "__call__"), "count": (np, "bincount"), "write": (os, "replace")}[stage]
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(*place, fail)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(text_parts(file), Sequences(tokenizer), cache)
    assert list(cache.iterdir()) == []
    assert len(build_corpus(text_parts(file), Sequences(tokenizer), cache)) > 0


def test_what_a_killed_build_left_is_removed_and_not_that_of_a_running_one(tmp_path, tokenizer, file):
    folder = build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache").folder
    shutil.rmtree(folder)
    dead = folder.with_name(f"{folder.name}.{module._builder()}{2**22 + 1}-x")
    alive = folder.with_name(f"{folder.name}.{module._builder()}{os.getppid()}-x")
    # of a machine whose name begins with that of this one
    other = folder.with_name(f"{folder.name}.{module._builder()[:-1]}-{2**22 + 1}-{2**22 + 2}+1-x")
    for path in (dead, alive, other):
        path.mkdir()
        (path / "tokens.arrow").write_bytes(b"half")
    build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, alive.name, other.name}


def test_of_two_builds_at_once_both_get_the_corpus(tmp_path, tokenizer, file, monkeypatch):
    build = module._build
    others = []

    def slow(*args):
        if not others:
            others.append(None)
            others[0] = build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")
        return build(*args)

    monkeypatch.setattr(module, "_build", slow)
    corpus = build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")
    assert rows_of(corpus) == rows_of(others[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [corpus.folder.name]


def damage(folder: Path, how: str) -> None:
    if how == "truncated":
        path = next(folder.glob("*.arrow"))
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "missing":
        (folder / "counts.npy").unlink()
    elif how in ("zeros", "half zeros", "no counts"):
        path = folder / "counts.npy" if how == "no counts" else next(folder.glob("*.arrow"))
        data = path.read_bytes()
        kept = len(data) // 2 if how == "half zeros" else 0
        path.write_bytes(data[:kept] + bytes(len(data) - kept))
    elif how == "other counts":
        np.save(folder / "counts.npy", np.load(folder / "counts.npy") * 0)
    elif how == "manifest":
        (folder / "corpus.json").write_text("{")
    else:
        manifest = json.loads((folder / "corpus.json").read_text())
        (folder / "corpus.json").write_text(json.dumps(manifest | {"format": 0}))


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("truncated", r"is damaged: .*\.arrow has \d+ bytes and should have \d+"),
        ("missing", r"is damaged: counts\.npy has None bytes"),
        ("zeros", r"is damaged: .*\.arrow: "),
        ("half zeros", r"is damaged: "),
        ("no counts", r"is damaged: counts\.npy: "),
        ("other counts", r"is damaged: it has \d+ rows and \d+ tokens and should have "),
        ("manifest", r"its corpus\.json cannot be read"),
        ("old", "has the format 0, and this version reads 1"),
    ],
)
def test_a_damaged_cache_is_refused_and_built_anew(tmp_path, tokenizer, file, how: str, match: str):
    corpus = build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")
    before = rows_of(corpus)
    damage(corpus.folder, how)
    with pytest.raises(DistillationError, match=match):
        Corpus(corpus.folder)
    with pytest.warns(UserWarning, match=f"{match}.* It is built anew"):
        again = build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")
    assert rows_of(again) == before


def test_another_process_may_remove_a_damaged_cache_first(tmp_path, tokenizer, file, monkeypatch):
    corpus = build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")
    before = rows_of(corpus)
    damage(corpus.folder, "missing")
    monkeypatch.setattr(module, "rank_zero_warn", lambda message: shutil.rmtree(corpus.folder))
    assert rows_of(build_corpus(text_parts(file), Sequences(tokenizer), tmp_path / "cache")) == before


def test_bad_texts_and_lengths(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DistillationError, match=r"train: there is no text in .*empty\.txt"):
        build_corpus(text_parts(tmp_path / "empty.txt"), Sequences(tokenizer), tmp_path / "cache", name="train")
    with pytest.raises(
        DistillationError,
        match="not one sequence is left of 2 texts: 1 are shorter than min_length=12 tokens and 1 mostly unknown",
    ):
        build_corpus([Rows([{"text": "film"}, {"text": "\u4e00 " * 12}])], Sequences(tokenizer), tmp_path / "cache")
    (tmp_path / "binary.txt").write_bytes(b"a\x00b")
    with pytest.raises(DistillationError, match="there is a zero byte in it"):
        build_corpus(text_parts(tmp_path / "binary.txt"), Sequences(tokenizer), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    for options, match in (
        ({"max_length": 2}, "max_length=2 leaves no room: the tokenizer adds 2 special tokens"),
        ({"max_length": 8}, "min_length=12 is above max_length=8"),
        ({"max_unknown": 0.0}, "max_unknown=0.0"),
    ):
        with pytest.raises(DistillationError, match=match):
            Sequences(tokenizer, **options)
