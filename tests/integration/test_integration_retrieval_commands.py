"""`lightning-distilbert mine` and `evaluate-retrieval` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_distilbert import DistillationModule, Reranking, Retrieval, RetrievalData
from lightning_distilbert.cli import main
from lightning_distilbert.retrieval.evaluate import evaluate_retrieval
from lightning_distilbert.retrieval.mining import mine_negatives

pytestmark = pytest.mark.filterwarnings("ignore:.* rows have fewer than .* negatives")
WORDS = "cat dog house tree water city day night man woman child people world time year life".split()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path) -> Path:
    """Return a working folder with a BEIR folder, a file of pairs, an encoder and a reranker."""
    corpus = [{"_id": f"d{i}", "text": f"{WORDS[i % 16]} {WORDS[(5 * i + 1) % 16]} {i}"} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": WORDS[i]} for i in range(8)]
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    (tmp_path / "beir" / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "beir" / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for split in ("train", "test"):
        lines = [f"q{i}\td{i + 16 * (split == 'test' and i % 2)}\t1" for i in range(8)]
        (tmp_path / "beir" / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    rows = [f"{query['text']}\t{document['text']}" for query, document in zip(queries, corpus, strict=False)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["question\tanswer", *rows]))
    (tmp_path / "encoder").symlink_to(tiny_bert_dir)
    DistillationModule(Reranking(), student=str(tiny_bert_dir)).save_student(tmp_path / "reranker")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def mined(*more: str, source: str = "beir", model: str = "encoder") -> list[dict]:
    main(["mine", "--input", source, "--model", model, "--output", "mined.jsonl", "--overwrite", *more])
    return lines("mined.jsonl")


def scores(*more: str, source: str = "beir", model: str = "encoder") -> dict:
    arguments = ["--input", source, "--model", model, "--output", "scores.json", "--overwrite"]
    main(["evaluate-retrieval", *arguments, *more])
    return json.loads(Path("scores.json").read_text())


def test_mine_writes_what_the_function_does(workplace: Path, capsys: pytest.CaptureFixture[str]):
    rows = mined("--device", "cpu")
    assert "mined.jsonl: 8 rows with 40 negatives" in capsys.readouterr().out
    mine_negatives("beir", "encoder", "same.jsonl")
    assert rows == lines("same.jsonl")
    mixed = RetrievalData({"train": "mined.jsonl", "test": "beir"}, tokenizer="encoder", num_negatives=3)
    assert next(iter(mixed.train_dataloader()))["document"]["input_ids"].shape[0] == 8 * 4


@pytest.mark.parametrize(
    "more",
    [
        ["--num_negatives", "2"], ["--depth", "6", "--pick", "random"], ["--skip", "2"], ["--margin", "0.1"],
        ["--relative_margin", "0.1"], ["--pick", "random"], ["--cross_encoder", "reranker"], ["--max_length", "3"],
        ["--precision", "bf16-mixed"], ["--split", "test"],
    ],
    ids=lambda more: more[0].lstrip("-"),
)  # fmt: skip
def test_each_option_of_mine_arrives(more: list[str], workplace: Path):
    assert mined(*more) != mined()


def test_options_beside_others(workplace: Path):
    random = ["--pick", "random"]
    assert mined(*random, "--seed", "1") != mined(*random)
    DistillationModule(Retrieval(normalize=False), student="encoder").save_student("raw")
    assert mined("--similarity", "dot", model="raw") != mined(model="raw")
    mined("--vectors", "corpus.npy")
    assert np.load("corpus.npy").shape == (30, 32)


def test_pairs_and_words(workplace: Path):
    rows = mined("--query", "question", "--document", "answer", source="pairs.tsv", model="bm25")
    assert [row["query"] for row in rows] == WORDS[:8]
    assert rows[0]["query_id"] == "q0"


def test_evaluation_writes_scores_and_ranking(workplace: Path, capsys: pytest.CaptureFixture[str]):
    report = scores("--run", "runs/encoder.trec", "--device", "cpu")
    results = evaluate_retrieval("beir", "encoder")
    out = capsys.readouterr().out
    assert "8 queries, 30 documents" in out
    assert f"{results.scores['ndcg@10']:.4f}" in out
    assert report["queries"] == 8
    for name, interval in results.intervals().items():
        assert report["scores"][name] == interval._asdict()
        assert report["per_query"][name] == dict(zip(results.query_ids, results.per_query[name].tolist(), strict=True))
    results.write_run("same.trec", tag="encoder")
    assert Path("runs/encoder.trec").read_text() == Path("same.trec").read_text()


@pytest.mark.parametrize(
    "more",
    [
        ["--split", "train"], ["--max_length", "3"], ["--ndcg_at", "3"], ["--mrr_at", "2"], ["--recall_at", "2"],
    ],
    ids=lambda more: more[0].lstrip("-"),
)  # fmt: skip
def test_each_option_of_the_evaluation_arrives(more: list[str], workplace: Path):
    assert scores(*more)["per_query"] != scores()["per_query"]


def test_options_that_change_the_ranking(workplace: Path):
    def run(*more: str, model: str = "encoder") -> str:
        scores("--run", "run", *more, model=model)
        return Path("run").read_text()

    DistillationModule(Retrieval(normalize=False), student="encoder").save_student("raw")
    assert run("--similarity", "dot", model="raw") != run(model="raw")
    assert run("--precision", "bf16-mixed") != run()
    assert run("--precision", "auto") in (run(), run("--precision", "bf16-mixed"))
    (workplace / "beir" / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{i}", "text": f"{WORDS[i]} {WORDS[(5 * i + 1) % 16]} {i}"}) for i in range(8))
    )
    qrels = workplace / "beir" / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().replace("\nq", "\nd"))
    assert run("--ignore_identical_ids") != run()
    assert not any(line.split()[0] == line.split()[2] for line in run("--ignore_identical_ids").splitlines())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", "nowhere"], "no file or folder"),
        (["--model", "nowhere"], "no folder 'nowhere'"),
        (["--model", "reranker"], "Reranking, which gives no sentence vectors"),
        (["--cross_encoder", "encoder"], "task Retrieval scores no pairs"),
        (["--output", "mined.txt"], "holds JSON lines"),
        (["--output", "pairs.tsv"], "holds JSON lines"),
        (["--split", "dev"], "has no split 'validation', only train, test"),
        (["--margin", "wide"], "invalid float value: 'wide'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(more: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]):
    good = ["--input", "beir", "--model", "encoder", "--output", "mined.jsonl"]
    assert message in refused(capsys, "mine", *good, *more)
    assert not Path("mined.jsonl").exists()


def test_mistakes_of_the_evaluation(workplace: Path, capsys: pytest.CaptureFixture[str]):
    good = ["evaluate-retrieval", "--input", "beir", "--model", "bm25"]
    assert "ndcg_at=0" in refused(capsys, *good, "--ndcg_at", "0")
    assert "holds JSON: give it .json" in refused(capsys, *good, "--output", "scores.txt")
    assert "are one file" in refused(capsys, *good, "--output", "a.json", "--run", "a.json")
    pairs = ["evaluate-retrieval", "--input", "pairs.tsv", "--model", "bm25", "--overwrite"]
    assert "is the input, which would be lost" in refused(capsys, *pairs, "--run", "pairs.tsv")
    assert "required: --input, --model" in refused(capsys, "evaluate-retrieval")
    Path("scores.json").write_text("precious")
    assert "is there already" in refused(capsys, *good, "--output", "scores.json")
    assert "is there already" in refused(capsys, *good, "--run", "scores.json")
    assert "is a folder" in refused(capsys, *good, "--run", "beir")
    assert Path("scores.json").read_text() == "precious"


def test_ids_that_no_ranking_can_hold_are_said_before_the_search(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    corpus = Path("beir", "corpus.jsonl")
    corpus.write_text(corpus.read_text().replace('"d29"', '"d 29"'))
    monkeypatch.setattr("lightning_distilbert.retrieval.evaluate.BM25", None)
    good = ["evaluate-retrieval", "--input", "beir", "--model", "bm25"]
    assert "'d 29' cannot stand in a TREC run" in refused(capsys, *good, "--run", "run.trec")


@pytest.mark.parametrize(("model", "tag"), [("my encoder", "my-encoder"), (".", "my-encoder")])
def test_the_ranking_is_named_after_any_folder(workplace: Path, monkeypatch: pytest.MonkeyPatch, model: str, tag: str):
    Path("encoder").rename("my encoder")
    Path("beir").rename("my encoder data")
    if model == ".":
        folder = workplace / "a" / "my encoder"
        folder.mkdir(parents=True)
        for file in (workplace / "my encoder").iterdir():
            (folder / file.name).symlink_to(file.resolve())
        monkeypatch.chdir(folder)
    run = workplace / "run.trec"
    scores("--run", str(run), source=str(workplace / "my encoder data"), model=model)
    assert {line.split()[-1] for line in run.read_text().splitlines()} == {tag}
