import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data import RetrievalData, RetrievalSplit
from lightning_distilbert.errors import DistillationError

PAIRS = [
    ("who sleeps", "the cat"),
    ("who works", "the man and the woman"),
    ("who reads", "the child"),
    ("who is slow", "the cat"),
    ("who works", "the old dog"),
]


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def decode(tokenizer, batch):
    return tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)


def test_training_batches_pair_queries_with_documents(tokenizer):
    data = RetrievalData({"train": PAIRS}, tokenizer=tokenizer, batch_size=5)
    (batch,) = data.train_dataloader()
    assert set(batch) == {"query", "document", "query_index", "document_index"}
    seen = list(zip(decode(tokenizer, batch["query"]), decode(tokenizer, batch["document"]), strict=True))
    assert sorted(seen) == sorted(PAIRS)
    for side, index in (("query", "query_index"), ("document", "document_index")):
        texts = decode(tokenizer, batch[side])
        same_text = [[a == b for a in texts] for b in texts]
        assert (batch[index][:, None] == batch[index][None, :]).tolist() == same_text
        assert set(batch[side]) == {"input_ids", "attention_mask", "token_type_ids"}


def test_batches_group_by_the_length_of_both_texts(tokenizer):
    pairs = [(" ".join(["who"] * (1 + i % 7)), f"cat {'a ' * (i % 5)}{i}") for i in range(200)]
    data = RetrievalData({"train": pairs}, tokenizer=tokenizer, batch_size=8)
    data.setup("fit")
    encoded = data._encoded["train"]
    for query, document, length in zip(*encoded.pairs.T, encoded.lengths, strict=True):
        assert length == len(encoded.queries[query]["input_ids"]) + len(encoded.documents[document]["input_ids"])
    sums = [
        batch["query"]["attention_mask"].sum(1) + batch["document"]["attention_mask"].sum(1)
        for batch in data.train_dataloader()
    ]
    assert max(int(total.max() - total.min()) for total in sums) <= 2
    assert sum(map(len, sums)) == 200


def test_evaluation_has_a_loader_of_queries_and_one_of_the_corpus(tokenizer):
    data = RetrievalData({"train": PAIRS, "dev": PAIRS}, tokenizer=tokenizer, eval_batch_size=2)
    expected = RetrievalSplit.from_pairs(PAIRS)
    queries, corpus = data.val_dataloader()
    texts = {}
    for batch in corpus:
        texts.update(zip(batch["index"].tolist(), decode(tokenizer, batch), strict=True))
    assert [texts[i] for i in range(len(texts))] == expected.documents
    found = {}
    for batch in queries:
        assert batch["relevant"].shape == batch["grades"].shape == (len(batch["index"]), 2)
        assert batch["grades"].dtype == torch.float32
        assert ((batch["relevant"] >= 0) == (batch["grades"] > 0)).all()
        for text, index, relevant in zip(decode(tokenizer, batch), batch["index"], batch["relevant"], strict=True):
            assert expected.queries[index] == text
            found[text] = sorted(texts[place] for place in relevant.tolist() if place >= 0)
    assert found == {
        query: sorted(document for other, document in PAIRS if other == query) for query in expected.queries
    }


def beir(folder):
    (folder / "qrels").mkdir()
    documents = [{"_id": f"d{i}", "text": f"document {i}"} for i in range(6)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": f"q{i}", "text": f"who {i}"}) for i in range(3)))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td4\t1\nq1\td2\t1\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td5\t2\nq2\td0\t1\n")
    return folder


def test_a_beir_folder_trains_on_its_own_pairs_and_searches_the_whole_corpus(tmp_path, tokenizer):
    data = RetrievalData(str(beir(tmp_path)), tokenizer=tokenizer)
    data.setup("fit")
    assert data.val_dataloader() == []
    (batch,) = data.train_dataloader()
    pairs = zip(decode(tokenizer, batch["query"]), decode(tokenizer, batch["document"]), strict=True)
    assert sorted(pairs) == [("who 0", "document 4"), ("who 1", "document 2")]
    assert len(data._encoded["train"].documents) == 2
    queries, corpus = data.test_dataloader()
    assert sum(len(batch["index"]) for batch in corpus) == 6
    (query,) = queries
    assert query["relevant"].tolist() == [[5, 0]]
    assert query["grades"].tolist() == [[2.0, 1.0]]
    assert len(data.predict_dataloader()) == 2


def test_each_split_may_be_of_another_kind(tmp_path, tokenizer):
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps({"q": q, "d": d}) for q, d in PAIRS))
    (tmp_path / "beir").mkdir()
    source = {
        "train": tmp_path / "pairs.jsonl",
        "dev": RetrievalSplit.from_pairs(PAIRS),
        "test": beir(tmp_path / "beir"),
    }
    data = RetrievalData(source, query="q", document="d", tokenizer=tokenizer)
    data.setup()
    assert len(data._encoded["train"]) == 5
    assert [len(part) for part in data._encoded["validation"]] == [4, 4]
    assert [len(part) for part in data._encoded["test"]] == [1, 6]
    assert data.retrieval_split("train") == RetrievalSplit.from_pairs(PAIRS)
    rows = [{"query": query, "document": document} for query, document in PAIRS]
    assert RetrievalData(rows, tokenizer=tokenizer).retrieval_split("train") == RetrievalSplit.from_pairs(PAIRS)
    assert RetrievalData(RetrievalSplit.from_pairs(PAIRS)).retrieval_split("train").queries[0] == "who sleeps"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": [("a", 1)]}, r"The train split, row 1: \('a', 1\) is not a query and a document"),
        ({"train": []}, "there is not one pair"),
        ({"train": [{"question": "a"}]}, r"The train split has no column 'query'. Its columns are \['question'\]"),
        ({"train": [{"query": "a", "document": None}]}, "row 1: 'document' is None, a NoneType and not a string"),
        ({"test": PAIRS}, "no split 'train'"),
    ],
)
def test_bad_sources(tokenizer, source, message):
    with pytest.raises(DistillationError, match=message):
        RetrievalData(source, tokenizer=tokenizer).setup("fit")


def test_documents_without_a_query(tokenizer):
    more = ["the big house", "a small tree", "the big house"]
    data = RetrievalData({"train": PAIRS[:2]}, unlabelled=more, tokenizer=tokenizer, batch_size=4)
    (batch,) = data.train_dataloader()
    asked = batch["query"]["attention_mask"].any(dim=1)
    documents = decode(tokenizer, batch["document"])
    assert sorted(zip(decode(tokenizer, batch["query"]), documents, strict=True)) == sorted(
        [*PAIRS[:2], ("", "the big house"), ("", "a small tree")]
    )
    assert [documents[i] for i in torch.nonzero(~asked).flatten()] in (more[:2], more[1::-1])
    assert batch["query_index"][~asked].tolist() == [-1, -1]
    assert len(set(batch["document_index"].tolist())) == 4
    assert set(batch["query"]) == {"input_ids", "attention_mask", "token_type_ids"}
    sizes = batch["query"]["attention_mask"].sum(dim=1) + batch["document"]["attention_mask"].sum(dim=1)
    assert sorted(data._encoded["train"].lengths.tolist()) == sorted(sizes.tolist())


def test_documents_alone_and_in_files(tokenizer, tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"document": "the big house"}))
    data = RetrievalData({"dev": PAIRS}, unlabelled=path, tokenizer=tokenizer)
    (batch,) = data.train_dataloader()
    assert batch["query"]["attention_mask"].tolist() == [[0]]
    assert decode(tokenizer, batch["document"]) == ["the big house"]


def test_both_sides_are_encoded_for_a_teacher_with_another_tokenizer(tokenizer, tokenizer_dir):
    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    other.add_tokens(["who works"])
    data = RetrievalData({"train": PAIRS, "dev": PAIRS}, unlabelled=["a dog"], tokenizer=tokenizer, batch_size=6)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(teacher_tokenizer=other))
    (batch,) = data.train_dataloader()
    for side in ("query", "document"):
        theirs = {name.removeprefix("teacher_"): batch[side][name] for name in batch[side] if name[:8] == "teacher_"}
        assert set(theirs) == {"input_ids", "attention_mask", "token_type_ids"}
        assert decode(other, theirs) == decode(tokenizer, batch[side])
    assert batch["query"]["teacher_attention_mask"].sum() < batch["query"]["attention_mask"].sum()
    assert set(next(iter(data.val_dataloader()[0]))) == {"input_ids", "attention_mask", "token_type_ids"} | {
        "index",
        "relevant",
        "grades",
    }
