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
    assert set(batch) == {"query", "document", "query_index", "document_index", "relevant_index"}
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


MINED = [
    {
        "query": "who sleeps",
        "document": "the cat",
        "negatives": ["a dog", "the man", "the child"],
        "scores": [4, 3, 2, 1],
    },
    {"query": "who works", "document": "the woman", "negatives": ["the cat"], "scores": [9, 8]},
    {"query": "who works", "document": "the man", "negatives": [], "scores": [7]},
]


def rows_of(tokenizer, batch):
    """The documents of each query, None for a row without a token, and their scores."""
    size = len(batch["query_index"])
    documents = [text or None for text in decode(tokenizer, batch["document"])]
    queries = decode(tokenizer, batch["query"])
    scores = batch["scores"].tolist() if "scores" in batch else [[]] * size
    return {(queries[i], documents[i]): (documents[i::size], scores[i]) for i in range(size)}


def test_hard_negatives_stand_below_the_answers(tokenizer):
    data = RetrievalData({"train": MINED}, tokenizer=tokenizer, num_negatives=2, negative_choice="first")
    (batch,) = data.train_dataloader()
    assert batch["document"]["input_ids"].shape[0] == batch["document_index"].shape[0] == 9
    assert batch["scores"].shape == (3, 3)
    found = rows_of(tokenizer, batch)
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert found["who sleeps", "the cat"] == (["the cat", "a dog", "the man"], [4.0, 3.0, 2.0])
    assert found["who works", "the woman"] == (["the woman", "the cat", None], [9.0, 8.0, nan])
    assert found["who works", "the man"] == (["the man", None, None], [7.0, nan, nan])
    missing = ~batch["document"]["attention_mask"].any(dim=1)
    assert (batch["document_index"] == -1).tolist() == missing.tolist()
    texts = [text for text in decode(tokenizer, batch["document"]) if text]
    assert len(set(batch["document_index"][~missing].tolist())) == len(set(texts)) < len(texts)
    # both documents that answer one query are named for either
    number = dict(zip(decode(tokenizer, batch["document"]), batch["document_index"].tolist(), strict=True))
    for query, relevant in zip(decode(tokenizer, batch["query"]), batch["relevant_index"].tolist(), strict=True):
        expected = {number["the cat"], -2} if query == "who sleeps" else {number["the woman"], number["the man"]}
        assert set(relevant) == expected


def test_the_number_of_negatives(tokenizer):
    sizes = {}
    for number in (0, 1, 3):
        data = RetrievalData({"train": MINED}, tokenizer=tokenizer, num_negatives=number)
        (batch,) = data.train_dataloader()
        sizes[number] = len(batch["document_index"])
        assert ("scores" in batch) == (number > 0)
    assert sizes == {0: 3, 1: 6, 3: 12}
    with pytest.warns(UserWarning, match="num_negatives=5, and no row has more than 3 negatives"):
        (batch,) = RetrievalData({"train": MINED}, tokenizer=tokenizer, num_negatives=5).train_dataloader()
    assert len(batch["document_index"]) == 12
    with pytest.raises(DistillationError, match="num_negatives=-1"):
        RetrievalData({"train": MINED}, num_negatives=-1)
    with pytest.raises(DistillationError, match=r"RetrievalData\(negative_choice=\.\.\.\) was given 'hard'"):
        RetrievalData({"train": MINED}, negative_choice="hard")


MANY = [
    {"query": f"who {i}", "document": f"the cat {i}", "negatives": [f"a dog {i} {j}" for j in range(6)]}
    for i in range(20)
]


def epochs(tokenizer, count=2, rank=None, **options):
    """What each epoch draws for each query."""
    data = RetrievalData({"train": MANY}, tokenizer=tokenizer, batch_size=4, num_negatives=2, **options)
    if rank is not None:
        data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        drawn = {}
        for batch in loader:
            assert "scores" not in batch
            drawn |= {query: documents[1:] for (query, _), (documents, _) in rows_of(tokenizer, batch).items()}
        found.append(drawn)
    return found


def test_negatives_are_drawn_anew_in_each_epoch_and_alike_in_each_run(tokenizer):
    first, second = epochs(tokenizer)
    assert first.keys() == second.keys() == {row["query"] for row in MANY}
    for row in MANY:
        assert len(set(first[row["query"]])) == 2
        assert set(first[row["query"]]) <= set(row["negatives"])
    assert sum(first[query] != second[query] for query in first) > 10
    assert epochs(tokenizer) == [first, second]
    assert epochs(tokenizer, seed=1)[0] != first
    chosen = epochs(tokenizer, negative_choice="first")
    assert chosen[0] == chosen[1] == {row["query"]: row["negatives"][:2] for row in MANY}


def test_each_process_draws_what_one_process_draws(tokenizer):
    first, second = (epochs(tokenizer, rank=rank) for rank in (0, 1))
    for epoch, whole in enumerate(epochs(tokenizer)):
        assert first[epoch] | second[epoch] == whole
        assert not first[epoch].keys() & second[epoch].keys()


def test_drawing_goes_on_in_the_middle_of_an_epoch(tokenizer):
    def loader():
        return RetrievalData({"train": MANY}, tokenizer=tokenizer, batch_size=4, num_negatives=2).train_dataloader()

    whole, resumed = loader(), loader()
    whole.sampler.set_epoch(3)
    batches = iter(whole)
    next(batches)
    resumed.load_state_dict(whole.state_dict())
    for ours, theirs in zip(batches, resumed, strict=True):
        assert torch.equal(ours["document_index"], theirs["document_index"])
        assert torch.equal(ours["document"]["input_ids"], theirs["document"]["input_ids"])


def test_lengths_count_the_longest_document(tokenizer):
    rows = [{"query": "who", "document": "cat", "negatives": ["dog", "the old man and the woman"]}] * 2
    size = {text: len(tokenizer(text)["input_ids"]) for text in ("who", "cat", "the old man and the woman")}
    data = RetrievalData({"train": rows}, tokenizer=tokenizer)
    data.setup("fit")
    assert data._encoded["train"].lengths.tolist() == [size["who"] + size["the old man and the woman"]] * 2
    bare = RetrievalData({"train": rows}, tokenizer=tokenizer, num_negatives=0)
    bare.setup("fit")
    assert bare._encoded["train"].lengths.tolist() == [size["who"] + size["cat"]] * 2
    assert len(bare._encoded["train"].documents) == 1  # negatives are not even tokenised


def test_negatives_by_their_ids_in_a_beir_folder(tmp_path, tokenizer):
    (tmp_path / "beir").mkdir()
    folder = beir(tmp_path / "beir")
    mined = tmp_path / "mined.jsonl"
    mined.write_text(json.dumps({"query_id": "q0", "document_id": "d4", "negative_ids": ["d5", "d1"]}))
    data = RetrievalData({"train": mined, "test": folder}, tokenizer=tokenizer, num_negatives=2)
    (batch,) = data.train_dataloader()
    assert sorted(decode(tokenizer, batch["document"])) == ["document 1", "document 4", "document 5"]
    assert decode(tokenizer, batch["query"]) == ["who 0"]
    assert data.retrieval_split("train") == RetrievalSplit.from_pairs([("who 0", "document 4")])


def test_negatives_beside_documents_without_a_query(tokenizer):
    data = RetrievalData({"train": MINED[:2]}, unlabelled=["the big house"], tokenizer=tokenizer, num_negatives=1)
    (batch,) = data.train_dataloader()
    found = rows_of(tokenizer, batch)
    assert found["", "the big house"][0] == ["the big house", None]
    assert batch["scores"].isnan().sum() == 2


def test_negatives_are_encoded_for_a_teacher_with_another_tokenizer(tokenizer, tokenizer_dir):
    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    other.add_tokens(["who works"])
    data = RetrievalData({"train": MINED}, tokenizer=tokenizer, num_negatives=2)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(teacher_tokenizer=other))
    (batch,) = data.train_dataloader()
    theirs = {name: batch["document"][f"teacher_{name}"] for name in ("input_ids", "attention_mask")}
    assert decode(other, theirs) == decode(tokenizer, batch["document"])
    assert torch.equal(theirs["attention_mask"].any(dim=1), batch["document"]["attention_mask"].any(dim=1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_that_do_not_belong_together_are_no_pairs(tokenizer, split):
    rows = [{"query": query, "document": document, "label": 1} for query, document in PAIRS]
    assert len(RetrievalData({split: rows}, tokenizer=tokenizer).retrieval_split(split).queries) == 4
    rows[2]["label"] = "0"
    with pytest.raises(DistillationError, match="1 of 5 rows have the label 0, the first is row 3"):
        RetrievalData({split: rows}, tokenizer=tokenizer).setup("fit" if split == "train" else split)
