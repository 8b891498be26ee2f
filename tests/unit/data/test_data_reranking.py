"""Pairs as a cross-encoder reads them: joined tokens, labels, and which belong to one query."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data import RerankingData
from lightning_distilbert.errors import DistillationError

MINED = [
    {"query": "who sleeps", "document": "the cat", "negatives": ["a dog", "the man", "the child"]},
    {"query": "who works", "document": "the woman", "negatives": ["the cat"]},
    {"query": "who works", "document": "the man", "negatives": []},
]
LABELLED = [
    {"query": "who sleeps", "document": "the cat", "label": 2},
    {"query": "who reads", "document": "the child", "label": 0},
    {"query": "who sleeps", "document": "a dog", "label": 0},
    {"query": "who sleeps", "document": "the man", "label": 1},
    {"query": "who reads", "document": "a dog", "label": None},
    {"query": "who is slow", "document": "the man", "label": 0},
]
NAN = "unknown"

pytestmark = pytest.mark.filterwarnings("ignore:.*rows have no negatives")


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def pairs_of(tokenizer, batch, prefix=""):
    """The pairs with their label, by the number of their query."""
    found = {}
    texts = tokenizer.batch_decode(batch[f"{prefix}input_ids"])
    for text, label, query in zip(texts, batch["labels"].tolist(), batch["query_index"].tolist(), strict=True):
        first, second = text.replace("[CLS]", "").replace("[PAD]", "").split("[SEP]")[:2]
        label = NAN if label != label else label
        found.setdefault((query, first.strip()), []).append((second.strip(), label))
    return {query: sorted(pairs, key=str) for (_, query), pairs in found.items()}


def test_training_pairs_are_those_of_the_tokenizer_with_their_labels(tokenizer):
    data = RerankingData({"train": MINED[:2]}, tokenizer=tokenizer)
    (batch,) = data.train_dataloader()
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels", "query_index"}
    assert (batch["labels"].dtype, batch["query_index"].dtype) == (torch.float32, torch.int64)
    assert pairs_of(tokenizer, batch) == {
        "who sleeps": [("a dog", 0.0), ("the cat", 1.0), ("the child", 0.0), ("the man", 0.0)],
        "who works": [("the cat", 0.0), ("the woman", 1.0)],
    }
    texts = [("who sleeps", "the cat"), ("who works", "the woman")]
    for text in texts:
        expected = tokenizer(*text)
        rows = [
            row
            for row, ids in enumerate(batch["input_ids"].tolist())
            if ids[: len(expected["input_ids"])] == expected["input_ids"]
        ]
        assert len(rows) == 1
        for name, values in expected.items():
            assert batch[name][rows[0], : len(values)].tolist() == values
        assert batch["attention_mask"][rows[0]].sum() == len(expected["input_ids"])


def test_each_answer_is_a_row_with_as_many_negatives_as_asked_for(tokenizer):
    data = RerankingData({"train": MINED}, tokenizer=tokenizer, num_negatives=2, negative_choice="first", batch_size=1)
    found = [pairs_of(tokenizer, batch) for batch in data.train_dataloader()]
    assert sorted(map(str, found)) == sorted(
        map(
            str,
            [
                {"who sleeps": [("a dog", 0.0), ("the cat", 1.0), ("the man", 0.0)]},
                {"who works": [("the cat", 0.0), ("the woman", 1.0)]},
                {"who works": [("the man", 1.0)]},
            ],
        )
    )


def test_negatives_are_drawn_anew_in_each_epoch(tokenizer):
    rows = [
        {"query": f"who {i}", "document": "the cat", "negatives": [f"a dog {j}" for j in range(8)]} for i in range(9)
    ]

    def draws(**options):
        loader = RerankingData({"train": rows}, tokenizer=tokenizer, num_negatives=2, **options).train_dataloader()
        found = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            found.append([pairs_of(tokenizer, batch) for batch in loader])
        return [{query: pairs for batch in epoch for query, pairs in batch.items()} for epoch in found]

    first, second = draws()
    assert [first, second] == draws()
    assert sum(first[query] != second[query] for query in first) > 4
    fixed = draws(negative_choice="first")
    assert fixed[0] == fixed[1]


def test_labelled_pairs(tokenizer):
    (batch,) = RerankingData({"train": LABELLED}, tokenizer=tokenizer).train_dataloader()
    # each row with an answer, or of which nobody knows, comes with what does not answer its query
    assert pairs_of(tokenizer, batch) == {
        "who sleeps": [("a dog", 0.0), ("the cat", 2.0), ("the man", 1.0)],
        "who reads": [("a dog", NAN), ("the child", 0.0)],
        "who is slow": [("the man", 0.0)],
    }


def test_a_pair_of_several_rows_is_trained_on_once(tokenizer):
    rows = [
        {"query": "who sleeps", "document": text, "label": label}
        for text, label in [("the cat", 1), ("the man", 1), ("a dog", 0), ("the child", 0)]
    ]
    unlabelled = [{"query": "who sleeps", "document": "a dog"}, {"query": "who sleeps", "document": "a tree"}]
    data = RerankingData({"train": rows, "test": rows * 2}, tokenizer=tokenizer, batch_size=9, unlabelled=unlabelled)
    (batch,) = data.train_dataloader()
    both = [("a dog", 0.0), ("a tree", NAN), ("the cat", 1.0), ("the child", 0.0), ("the man", 1.0)]
    assert pairs_of(tokenizer, batch) == {"who sleeps": both}
    # and predictions are one for each row
    (batch,) = data.predict_dataloader()
    assert len(batch["input_ids"]) == 8


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            MINED,
            {
                "who sleeps": [("a dog", 0.0), ("the cat", 1.0), ("the child", 0.0), ("the man", 0.0)],
                "who works": [("the cat", 0.0), ("the man", 1.0), ("the woman", 1.0)],
            },
        ),
        (
            LABELLED,
            {
                "who sleeps": [("a dog", 0.0), ("the cat", 2.0), ("the man", 1.0)],
                "who reads": [("a dog", NAN), ("the child", 0.0)],
                "who is slow": [("the man", 0.0)],
            },
        ),
    ],
)
def test_evaluation_has_all_candidates_of_a_query_once(tokenizer, rows, expected):
    data = RerankingData({"train": MINED, "dev": rows}, tokenizer=tokenizer, eval_batch_size=1, num_negatives=1)
    found = {}
    for batch in data.val_dataloader():
        assert len(set(batch["query_index"].tolist())) == 1
        found |= pairs_of(tokenizer, batch)
    assert found == expected


def test_predictions_are_of_the_rows_in_their_order(tokenizer):
    rows = [{"query": row["query"], "document": row["document"]} for row in (*LABELLED, LABELLED[0])]
    data = RerankingData({"predict": rows}, tokenizer=tokenizer, eval_batch_size=4)
    texts = [text for batch in data.predict_dataloader() for text in tokenizer.batch_decode(batch["input_ids"])]
    for text, row in zip(texts, rows, strict=True):
        assert text.startswith(f"[CLS] {row['query']} [SEP] {row['document']} [SEP]")


def test_unlabelled_pairs_are_for_the_teacher(tokenizer):
    more = [{"query": "who runs", "document": "the cat"}, {"query": "who sleeps", "document": "a tree"}]
    (batch,) = RerankingData({"train": MINED[:1]}, tokenizer=tokenizer, unlabelled=more).train_dataloader()
    found = pairs_of(tokenizer, batch)
    assert found["who runs"] == [("the cat", NAN)]
    assert ("a tree", NAN) in found["who sleeps"]
    (batch,) = RerankingData({"dev": MINED}, tokenizer=tokenizer, unlabelled=more).train_dataloader()
    assert batch["labels"].isnan().tolist() == [True, True]


def test_pairs_are_joined_for_a_teacher_with_another_tokenizer(tokenizer, tokenizer_dir):
    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    other.add_tokens(["who sleeps"])
    data = RerankingData({"train": MINED, "dev": MINED}, tokenizer=tokenizer)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(teacher_tokenizer=other))
    (batch,) = data.train_dataloader()
    assert pairs_of(other, batch, "teacher_") == pairs_of(tokenizer, batch)
    assert batch["teacher_attention_mask"].sum() < batch["attention_mask"].sum()
    assert "teacher_input_ids" not in next(iter(data.val_dataloader()))


def test_pairs_that_are_too_long_are_cut_and_padding_is_rounded(tokenizer):
    rows = [{"query": "the cat " * 9, "document": "a dog " * 9, "negatives": ["the"]}]
    data = RerankingData({"train": rows}, tokenizer=tokenizer, max_length=12)
    (batch,) = data.train_dataloader()
    expected = tokenizer(rows[0]["query"], rows[0]["document"], truncation=True, max_length=12)
    assert batch["input_ids"].shape[1] == 12
    assert expected["input_ids"] in batch["input_ids"].tolist()
    data = RerankingData({"train": rows}, tokenizer=tokenizer, max_length=12, pad_to_multiple_of=16)
    assert next(iter(data.train_dataloader()))["input_ids"].shape[1] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": {"train": [{"query": "a", "document": "b"}]}}, "no row has negatives or a 'label', so that there"),
        ({"source": {"train": MINED}, "num_negatives": 0}, "num_negatives=0: it has to be 1 or more"),
        ({"source": {"train": MINED}, "negative_choice": "hard"}, "was given 'hard'"),
        ({"source": {"train": [{"document": "b"}]}}, "has no column 'query'"),
        ({"source": {"dev": MINED}}, "There is no split 'train'"),
    ],
)
def test_bad_options_and_rows(tokenizer, options, message):
    with pytest.raises(DistillationError, match=message):
        RerankingData(tokenizer=tokenizer, **options).setup("fit")


def test_rows_without_negatives_are_counted(tokenizer):
    with pytest.warns(UserWarning, match="1 of 3 rows have no negatives"):
        RerankingData({"train": MINED}, tokenizer=tokenizer).setup("fit")


def test_columns_may_have_other_names(tokenizer):
    rows = [{"q": "who", "d": "the cat", "good": 1}, {"q": "who", "d": "a dog", "good": 0}]
    data = RerankingData({"train": rows}, query="q", document="d", label="good", tokenizer=tokenizer)
    assert pairs_of(tokenizer, next(iter(data.train_dataloader()))) == {"who": [("a dog", 0.0), ("the cat", 1.0)]}


def test_negatives_beside_labels_are_not_lost_unsaid(tokenizer):
    rows = [MINED[0] | {"label": 1}, *LABELLED]
    with pytest.raises(DistillationError, match="rows have negatives and a 'label', of which only one is read"):
        RerankingData({"train": rows}, tokenizer=tokenizer).setup("fit")
