from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_distilbert import DistillationModule, Reranking, Retrieval, RetrievalData
from lightning_distilbert.data.beir import RetrievalSplit
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval import encode
from lightning_distilbert.retrieval.bm25 import BM25
from lightning_distilbert.retrieval.encode import encode_corpus
from lightning_distilbert.retrieval.mining import Mined, Selection, mine_negatives
from lightning_distilbert.retrieval.scoring import PairScorer

WORDS = "cat dog house tree water city day night man woman child people world time year life".split()
pytestmark = pytest.mark.filterwarnings("ignore:.* rows have fewer than .* negatives")


@pytest.fixture
def data() -> RetrievalSplit:
    """Return forty documents of three words, and twelve queries of two with one to three documents."""
    documents = [f"{WORDS[i % 16]} {WORDS[(i * 5 + 1) % 16]} {WORDS[(i * 7 + i // 16) % 16]}" for i in range(40)]
    relevant = [{(i * 3 + j * 11) % 40: 1.0 for j in range(1 + i % 3)} for i in range(12)]
    queries = [f"{WORDS[i]} {WORDS[i + 3]}" for i in range(12)]
    return RetrievalSplit(queries, documents, relevant, [f"q{i}" for i in range(12)], [f"d{i}" for i in range(40)])


@pytest.fixture
def encoder(tiny_bert_dir: Path) -> DistillationModule:
    """Return a module with an untrained student."""
    return DistillationModule(Retrieval(), student=str(tiny_bert_dir))


def mine(data: RetrievalSplit, ranker: Any, path: Path, **options: Any) -> list[dict[str, Any]]:
    mine_negatives(data, ranker, path / "mined.jsonl", overwrite=True, **options)
    return [json.loads(line) for line in (path / "mined.jsonl").read_text().splitlines()]


def cosines(data: RetrievalSplit, encoder: DistillationModule) -> np.ndarray:
    return encode_corpus(encoder, data.queries) @ encode_corpus(encoder, data.documents).T


def test_rows_hold_the_best_documents_that_do_not_answer(
    data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path
):
    rows = mine(data, encoder, tmp_path, num_negatives=4)
    similarity = cosines(data, encoder)
    assert [(row["query_id"], row["document_id"]) for row in rows] == [(f"q{q}", f"d{d}") for q, d in data.pairs()]
    for row, (query, document) in zip(rows, data.pairs(), strict=True):
        order = [place for place in np.argsort(-similarity[query], kind="stable") if place not in data.relevant[query]]
        assert row["negative_ids"] == [f"d{place}" for place in order[:4]]
        assert row["negatives"] == [data.documents[place] for place in order[:4]]
        assert (row["query"], row["document"]) == (data.queries[query], data.documents[document])
        assert row["cosines"] == pytest.approx(similarity[query, [document, *order[:4]]].tolist(), abs=2e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined.jsonl"]


def test_bm25_finds_documents_with_words_of_the_query(data: RetrievalSplit, tmp_path: Path):
    rows = mine(data, "bm25", tmp_path, num_negatives=3)
    index = BM25(data.documents)
    for row, (query, document) in zip(rows, data.pairs(), strict=True):
        _, found = index.search([data.queries[query]], 40)
        order = [place for place in found[0].tolist() if place >= 0 and place not in data.relevant[query]][:3]
        assert row["negative_ids"] == [f"d{place}" for place in order]
        expected = index.score([data.queries[query]], [np.array([document, *order])])[0]
        assert row["bm25_scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        words = set(data.queries[query].split())
        assert all(words & set(text.split()) for text in row["negatives"])


def test_texts_that_are_the_query_or_answer_it_are_no_negatives(encoder: DistillationModule, tmp_path: Path):
    documents = ["a cat", "The cat ", "a dog", " A CAT", "a house", "the  cat"]
    data = RetrievalSplit(["the cat"], documents, [{0: 1.0}])
    rows = mine(data, encoder, tmp_path)
    assert sorted(rows[0]["negative_ids"]) == ["d2", "d4", "d5"]


def test_skip_and_depth_bound_the_candidates(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    every = mine(data, encoder, tmp_path, num_negatives=20)
    skipped = mine(data, encoder, tmp_path, num_negatives=3, skip=4)
    assert [row["negative_ids"] for row in skipped] == [row["negative_ids"][4:7] for row in every]
    shallow = mine(data, encoder, tmp_path, num_negatives=2, depth=6, skip=1, pick="random")
    for row, whole in zip(shallow, every, strict=True):
        assert set(row["negative_ids"]) <= set(whole["negative_ids"][1:7])
        assert len(row["negative_ids"]) == 2


@pytest.mark.parametrize(
    "margin", [{"margin": 0.05}, {"relative_margin": 0.05}, {"margin": 0.05, "relative_margin": 0.07}]
)
def test_margins_leave_out_what_scores_like_an_answer(
    data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path, margin: dict[str, float]
):
    every = mine(data, encoder, tmp_path, num_negatives=39, depth=39)
    rows = mine(data, encoder, tmp_path, num_negatives=39, depth=39, **margin)
    dropped = 0
    for row, whole in zip(rows, every, strict=True):
        own = whole["cosines"][0]
        limit = min(own - margin.get("margin", 0), own - abs(own) * margin.get("relative_margin", 0))
        kept = [
            name for name, score in zip(whole["negative_ids"], whole["cosines"][1:], strict=True)
            if score <= limit
        ]  # fmt: skip
        assert row["negative_ids"] == kept
        dropped += len(whole["negative_ids"]) - len(kept)
    assert dropped > 0


def test_relative_margins_lie_below_negative_scores_too():
    assert Selection(relative_margin=0.1).of(-1.0, np.array([-0.9, -1.05, -1.2]), 0).tolist() == [2]


def test_random_negatives_depend_on_the_seed_alone(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    top = mine(data, encoder, tmp_path)
    first = mine(data, encoder, tmp_path, pick="random")
    assert first == mine(data, encoder, tmp_path, pick="random")
    assert first != top
    assert first != mine(data, encoder, tmp_path, pick="random", seed=1)
    for row in first:
        assert row["cosines"][1:] == sorted(row["cosines"][1:], reverse=True)


def test_options_of_the_search_change_the_rows(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    encoder.task = Retrieval(normalize=False)
    base = mine(data, encoder, tmp_path)
    for options in ({"similarity": "dot"}, {"max_length": 3}, {"precision": "bf16-mixed"}):
        assert mine(data, encoder, tmp_path, **options) != base


def length_of_common(pairs: Any) -> list[float]:
    return [-float(len(set(query) & set(document))) for query, document in pairs]


def test_a_scorer_gives_the_scores(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    asked = []

    def scorer(pairs: Any) -> list[float]:
        asked.extend(pairs)
        return length_of_common(pairs)

    base = mine(data, encoder, tmp_path)
    rows = mine(data, encoder, tmp_path, scorer=scorer)
    assert [row["negative_ids"] for row in rows] == [row["negative_ids"] for row in base]
    for row in rows:
        texts = [row["document"], *row["negatives"]]
        assert row["scores"] == length_of_common([(row["query"], text) for text in texts])
    assert len(asked) == len(set(asked))
    assert set(asked) == {(row["query"], text) for row in rows for text in (row["document"], *row["negatives"])}


def test_margins_are_those_of_the_scorer(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    every = mine(data, encoder, tmp_path, num_negatives=39, depth=39)
    rows = mine(data, encoder, tmp_path, num_negatives=3, depth=39, margin=1.0, scorer=length_of_common)
    for row, whole in zip(rows, every, strict=True):
        own = length_of_common([(row["query"], row["document"])])[0]
        scores = length_of_common([(row["query"], text) for text in whole["negatives"]])
        kept = [n for n, score in zip(whole["negative_ids"], scores, strict=True) if score <= own - 1.0]
        assert row["negative_ids"] == kept[:3]
        assert all(score <= own - 1.0 for score in row["scores"][1:])


def test_a_cross_encoder_is_a_scorer(
    data: RetrievalSplit, encoder: DistillationModule, tiny_bert_dir: Path, tmp_path: Path
):
    scorer = PairScorer(DistillationModule(Reranking(), student=str(tiny_bert_dir)))
    row = mine(data, encoder, tmp_path, scorer=scorer)[7]
    expected = scorer([(row["query"], text) for text in (row["document"], *row["negatives"])])
    assert row["scores"] == pytest.approx(expected, abs=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined.jsonl"]


def test_rows_with_few_negatives_are_counted(encoder: DistillationModule, tmp_path: Path):
    data = RetrievalSplit(["a", "b"], ["x", "y", "z"], [{0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0}])
    with pytest.warns(UserWarning, match="4 of 4 rows have fewer than 5 negatives, 3 of them none"):
        mined = mine_negatives(data, encoder, tmp_path / "mined.jsonl")
    assert mined == Mined(rows=4, negatives=2, short=4, without=3)
    rows = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert [len(row["negatives"]) for row in rows] == [0, 0, 0, 2]
    assert [len(row["cosines"]) for row in rows] == [1, 1, 1, 3]


def test_an_encoder_s_own_similarity_is_taken_unless_another_is_named(
    data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path
):
    encoder.task = Retrieval(normalize=False, similarity="dot")
    rows = mine(data, encoder, tmp_path, num_negatives=2)
    assert rows == mine(data, encoder, tmp_path, num_negatives=2, similarity="dot")
    assert "dot_products" in rows[0]
    assert "cosines" in mine(data, encoder, tmp_path, num_negatives=2, similarity="cosine")[0]


def test_no_negative_at_all_is_an_error(encoder: DistillationModule, tmp_path: Path):
    data = RetrievalSplit(["a"], ["x"], [{0: 1.0}])
    with pytest.raises(DistillationError, match="Not one of 1 rows has a negative"):
        mine_negatives(data, encoder, tmp_path / "mined.jsonl")
    assert not (tmp_path / "mined.jsonl").exists()


@pytest.mark.parametrize(
    ("ranker", "options", "name"),
    [
        ("encoder", {}, "cosines"),
        ("encoder", {"similarity": "dot"}, "dot_products"),
        ("bm25", {}, "bm25_scores"),
        ("bm25", {"scorer": length_of_common}, "scores"),
    ],
)
def test_only_a_scorers_scores_pass_for_a_teachers(
    data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path, ranker: str, options: dict, name: str
):
    rows = mine(data, encoder if ranker == "encoder" else ranker, tmp_path, num_negatives=2, **options)
    names = {"query", "document", "negatives", "query_id", "document_id", "negative_ids"}
    assert all(row.keys() == names | {name} and len(row[name]) == 3 for row in rows)
    read = RetrievalData(tmp_path / "mined.jsonl", tokenizer=encoder.tokenizer, num_negatives=2, batch_size=4)
    split = read.candidate_split("train")
    for row, (query, document), negatives in zip(rows, split.pairs, split.negatives, strict=True):
        assert split.queries[query] == row["query"]
        assert split.documents[document] == row["document"]
        assert [split.documents[place] for place in negatives] == row["negatives"]
    assert [scores.tolist() for scores in split.scores] == ([row["scores"] for row in rows] if name == "scores" else [])
    batch = next(iter(read.train_dataloader()))
    assert batch["document"]["input_ids"].shape[0] == 12
    assert ("scores" in batch) == (name == "scores")


def test_an_interrupted_run_encodes_the_corpus_once(
    data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = mine(data, encoder, tmp_path)
    (tmp_path / "mined.jsonl").unlink()

    def stopped(pairs: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine_negatives(data, encoder, tmp_path / "mined.jsonl", scorer=stopped)
    assert [path.name for path in tmp_path.iterdir()] == [".mined.jsonl.work"]
    texts = []
    rows = encode.encode_rows
    monkeypatch.setattr(encode, "encode_rows", lambda module, r, *rest: texts.append(len(r)) or rows(module, r, *rest))
    assert mine(data, encoder, tmp_path) == expected
    assert texts == [len(data.queries)]
    assert [path.name for path in tmp_path.iterdir()] == ["mined.jsonl"]


def test_vectors_can_be_kept(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    expected = mine(data, encoder, tmp_path)
    for _ in range(2):
        assert mine(data, encoder, tmp_path, vectors=tmp_path / "corpus.npy") == expected
    assert (tmp_path / "corpus.npy").is_file()
    encoder.task = Retrieval(pooling="cls")
    with pytest.raises(DistillationError, match="made with another task"):
        mine(data, encoder, tmp_path, vectors=tmp_path / "corpus.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives=0"),
        ({"num_negatives": 5, "depth": 4}, "depth=4"),
        ({"skip": -1}, "skip=-1"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"relative_margin": float("nan")}, "relative_margin=nan"),
        ({"pick": "best"}, "pick=... was given 'best'"),
        ({"negatives": 3}, "has no option 'negatives'"),
        ({"similarity": "l2"}, "'l2' is unknown"),
        ({"output": "mined.tsv"}, "holds JSON lines"),
    ],
)
def test_options_are_checked(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path, options: dict, message):
    output = tmp_path / options.pop("output", "mined.jsonl")
    with pytest.raises(DistillationError, match=message):
        mine_negatives(data, encoder, output, **options)
    assert not output.exists()


def test_an_output_that_is_there_is_kept(data: RetrievalSplit, tmp_path: Path):
    (tmp_path / "mined.jsonl").write_text("precious")
    with pytest.raises(DistillationError, match="is there already"):
        mine_negatives(data, "bm25", tmp_path / "mined.jsonl")
    assert (tmp_path / "mined.jsonl").read_text() == "precious"
