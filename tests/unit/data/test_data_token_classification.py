from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data import TokenClassificationData
from lightning_distilbert.errors import DistillationError, MissingExtraError

CONLL = "-DOCSTART- -X- O\n\nthe DT O\nman NN I-PER\nin IN O\nold NN I-LOC\ncity NN B-LOC\n\ngood JJ O\n"
ROWS = [
    {"tokens": ["the", "man", "in", "old", "city"], "tags": ["O", "B-PER", "O", "B-LOC", "B-LOC"]},
    {"tokens": ["good"], "tags": ["O"]},
]


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def attach(data, names=None, number=None, **module):
    """Give the data a trainer with a module, as Lightning does."""
    task = SimpleNamespace(labels=names, num_labels=number)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(task=task, labels=names, **module))
    return data


def written(data, split="train", stage="fit"):
    """Return the tags of the words as the model learns them, sentence by sentence."""
    data.setup(stage)
    encoded = data._encoded[split]
    rows = [row["labels"][row["word"] >= 0].tolist() for row in encoded[list(range(len(encoded)))]]
    return [" ".join("-" if label < 0 else data.label_set.names[label] for label in row) for row in rows]


def test_columns_and_rows_and_json_give_the_same(tmp_path: Path, tokenizer):
    (tmp_path / "eng.train").write_text(CONLL)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    wanted = ["O B-PER O B-LOC B-LOC", "O"]
    for source in (str(tmp_path / "eng.train"), {"train": tmp_path / "train.jsonl"}, ROWS):
        data = TokenClassificationData(source, tokenizer=tokenizer)
        assert written(data) == wanted  # IOB1 and IOB2 alike
        assert data.label_set.names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_a_datasets_column_brings_the_names_of_its_numbers(tokenizer):
    datasets = pytest.importorskip("datasets")
    names = ["B-LOC", "O", "B-PER", "I-LOC", "I-PER"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    rows = [{"tokens": row["tokens"], "tags": [names.index(tag) for tag in row["tags"]]} for row in ROWS]
    data = TokenClassificationData(datasets.Dataset.from_list(rows, features=features), tokenizer=tokenizer)
    assert written(data) == ["O B-PER O B-LOC B-LOC", "O"]
    assert data.label_set.names == tuple(names)
    # the task's order is another: numbers are still those of the column
    other = attach(TokenClassificationData(datasets.Dataset.from_list(rows, features=features), tokenizer=tokenizer),
                   ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), 5)  # fmt: skip
    assert written(other) == ["O B-PER O B-LOC B-LOC", "O"]
    assert other.label_set.names[1] == "B-PER"


def test_the_names_come_from_the_task_then_the_option_then_the_tags(tokenizer):
    task = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    options = {"labels": sorted(task, reverse=True), "tokenizer": tokenizer}
    assert TokenClassificationData(ROWS, **options).labels == list(options["labels"])
    data = attach(TokenClassificationData(ROWS, **options), task, 5)  # in another order, which names settle
    assert written(data)[0] == "O B-PER O B-LOC B-LOC"
    assert data.label_set.names == task
    numbers = [{**row, "tags": [options["labels"].index(tag) for tag in row["tags"]]} for row in ROWS]
    assert written(attach(TokenClassificationData(numbers, **options), task, 5))[0] == "O B-PER O B-LOC B-LOC"
    alone = TokenClassificationData(ROWS, **options)
    alone.setup("fit")
    assert alone.label_set.names == tuple(options["labels"])
    attach(alone, task, 5).setup("fit")  # a second module
    assert alone.label_set.names == task
    lower = attach(TokenClassificationData(ROWS, tokenizer=tokenizer), ("O", "B-per", "I-per", "B-loc", "I-loc"), 5)
    assert written(lower)[0] == "O B-per O B-loc B-loc"


@pytest.mark.parametrize(
    ("names", "options", "wanted"),
    [
        (("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), {}, "O B-PER O B-LOC B-LOC"),
        (("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), {"model_scheme": "iob1"}, "O I-PER O I-LOC B-LOC"),
        (None, {"model_scheme": "iobes"}, "O S-PER O S-LOC S-LOC"),
        (("O", "B-LOC", "I-LOC", "L-LOC", "U-LOC", "U-PER"), {}, "O U-PER O U-LOC U-LOC"),
        (("O", "I-PER", "I-LOC"), {}, "O I-PER O I-LOC I-LOC"),
    ],
)
def test_tags_are_rewritten_in_the_scheme_of_the_labels(names, options, wanted, tokenizer, tmp_path: Path):
    (tmp_path / "eng.train").write_text(CONLL)
    data = TokenClassificationData(tmp_path / "eng.train", tokenizer=tokenizer, **options)
    assert written(attach(data, names, names and len(names)))[0] == wanted


def test_columns_of_any_names_are_taken(tmp_path: Path, tokenizer):
    (tmp_path / "train.tsv").write_text("# a comment\n1\tthe\tO\tB-X\n2\tman\tB-PER\tO\n")
    options = {"columns": ["", "word", "outer", "inner"], "tokens": "word", "comments": "#", "tokenizer": tokenizer}
    for tags, wanted in (("outer", "O B-PER"), ("inner", "B-X O")):
        assert written(TokenClassificationData(tmp_path, tags=tags, **options)) == [wanted]
    with pytest.raises(DistillationError, match=r"train\.tsv has no column 'tags'\. Its columns are \['word', 'outer'"):
        TokenClassificationData(tmp_path, labels=["O", "B-X"], **options).setup("fit")
    with pytest.raises(DistillationError, match="no tag of an entity in a column 'tags'"):
        TokenClassificationData(tmp_path, **options).setup("fit")
    with pytest.raises(DistillationError, match="4 columns where the columns are"):
        TokenClassificationData(tmp_path, **{**options, "columns": ["word", "tags"]}).setup("fit")


def test_long_sentences_become_windows_of_the_given_size(tokenizer):
    row = {"tokens": ["man"] * 60, "tags": ["O", "B-PER"] * 30}
    sizes = {}
    for options in ({"max_length": 12}, {"max_length": 12, "stride": 8}, {"max_length": 62}):
        data = TokenClassificationData([row], tokenizer=tokenizer, **options)
        assert sorted(" ".join(written(data)).split()) == ["B-PER"] * 30 + ["O"] * 30
        sizes[str(options)] = len(data._encoded["train"])
    assert list(sizes.values()) == [8, 26, 1]


@pytest.mark.filterwarnings("ignore:.* have no tags:UserWarning")
def test_sentences_without_tags_are_for_the_teacher_alone(tokenizer, tmp_path: Path):
    (tmp_path / "train.txt").write_text("the\n\nman\nin\n")
    more = [*ROWS, {"tokens": ["dog"], "tags": None}, {"tokens": "the old city", "tags": None}]
    assert written(TokenClassificationData(more, tokenizer=tokenizer))[2:] == ["-", "- - -"]
    for unlabelled in (
        ["the dog.", "a cat"],
        [["the", "dog", "."], ["a", "cat"]],
        [{"tokens": ["the", "dog", "."]}, {"tokens": ["a", "cat"]}],
        tmp_path / "train.txt",
        tmp_path,
    ):
        data = TokenClassificationData(ROWS, tokenizer=tokenizer, unlabelled=unlabelled)
        wanted = ["-", "- -"] if isinstance(unlabelled, Path) else ["- - -", "- -"]
        assert written(data)[2:] == wanted
    alone = TokenClassificationData(ROWS, tags=None, tokenizer=tokenizer)
    alone.setup("fit")
    batch = next(iter(alone.train_dataloader()))
    assert "labels" not in batch
    assert batch["first_subword"].sum() == 6
    with pytest.raises(DistillationError, match=r"unlabelled: .* has only the splits \['test'\]"):
        TokenClassificationData(ROWS, tokenizer=tokenizer, unlabelled={"test": ROWS}).setup("fit")


@pytest.mark.parametrize("name", ["more.txt", "more.txt.zst"])
def test_unlabelled_text_has_a_sentence_in_each_line(tokenizer, tmp_path: Path, name):
    # three words each, so that it could pass for columns
    text = "the old city\n\na cat .\n" if name.endswith(".zst") else "the old city\na cat .\n"
    content = pytest.importorskip("zstandard").compress(text.encode()) if name.endswith(".zst") else text.encode()
    (tmp_path / name).write_bytes(content)
    data = TokenClassificationData(ROWS, tokenizer=tokenizer, unlabelled=str(tmp_path / name))
    assert written(data)[2:] == ["- - -", "- - -"]
    if name.endswith(".txt"):
        named = TokenClassificationData(
            ROWS, tokenizer=tokenizer, unlabelled=str(tmp_path / name), columns=["tokens", "", ""]
        )
        assert written(named)[2:] == ["- -"]


def test_sentences_without_tags_are_counted(tokenizer):
    rows = [*ROWS, {"tokens": ["dog"], "tags": None}]
    with pytest.warns(UserWarning, match="train split: 1 of 3 sentences have no tags; they count for distillation"):
        TokenClassificationData(rows, tokenizer=tokenizer).setup("fit")
    data = TokenClassificationData({"train": ROWS, "dev": rows}, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="validation split: 1 of 3 sentences have no tags; they do not count"):
        data.setup("validate")


def test_broken_tags_are_counted_and_repaired_or_refused(tokenizer):
    rows = [
        {"tokens": ["the", "man", "in"], "tags": ["B-PER", "I-PER", "O"]},
        {"tokens": ["the", "man", "in"], "tags": ["O", "I-PER", "I-PER"]},
        {"tokens": ["old", "city", "dog"], "tags": ["B-LOC", "I-PER", "I-LOC"]},
    ]
    said = (
        r"train split: 3 tags in 2 sentences break the rules of IOB2, the first is I-PER after O in row 2 "
        r"\(the word 'man'\)"
    )
    with pytest.warns(UserWarning, match=said):
        assert written(TokenClassificationData(rows, scheme="iob2", tokenizer=tokenizer)) == [
            "B-PER I-PER O", "O B-PER I-PER", "B-LOC B-PER B-LOC",
        ]  # fmt: skip
    with pytest.raises(DistillationError, match=f"{said}.*broken='repair'"):
        TokenClassificationData(rows, scheme="iob2", broken="stop", tokenizer=tokenizer).setup("fit")
    with pytest.warns(
        UserWarning, match=r"2 tags in 2 sentences break the rules of IOB1, the first is B-PER at the beg"
    ):
        TokenClassificationData(rows, scheme="iob1", tokenizer=tokenizer).setup("fit")


def test_words_that_are_nothing_to_the_tokenizer_are_counted_and_empty_sentences_too(tokenizer):
    rows = [*ROWS, {"tokens": ["\u200b", "man"], "tags": ["B-PER", "I-PER"]}, {"tokens": [], "tags": []}]
    with pytest.warns(UserWarning, match="sentences|words") as said:
        assert written(TokenClassificationData(rows, tokenizer=tokenizer))[2:] == ["I-PER", ""]
    assert [str(warning.message)[:70] for warning in said] == [
        "The train split: 1 sentences have no word, the first is row 4.",
        "The train split: 1 words are nothing to the tokenizer, the first is '\\u"[:70],
    ]


BAD = {
    "a text with tags": (
        {"tokens": "the man", "tags": ["O", "O"]},
        r"row 3: 'tokens' is 'the man', a str and not the list",
    ),
    "a number among words": ({"tokens": ["the", 2], "tags": ["O", "O"]}, "row 3: 'tokens' is .* which are strings"),
    "too few tags": ({"tokens": ["the", "man"], "tags": ["O"]}, "row 3: 1 tags for 2 words"),
    "one tag": ({"tokens": ["the"], "tags": "O"}, "row 3: 'O' as tags for 1 words"),
    "an unknown letter": ({"tokens": ["the"], "tags": ["X-PER"]}, r"row 3, word 0 \('the'\): The tag 'X-PER' is not"),
    "no tag": (
        {"tokens": ["the", "man"], "tags": ["O", None]},
        r"row 3, word 1 \('man'\): The tag 'None' is not known",
    ),
    "an empty tag": ({"tokens": ["the"], "tags": [""]}, r"row 3, word 0 \('the'\): The tag '' is not known"),
    "a number": ({"tokens": ["the"], "tags": [1]}, "the tag 1 is a number, and their names are not known. Name the"),
    "no tags at all": ({"tokens": ["the"]}, "row 3: there is no 'tags', only"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_named(bad, tokenizer):
    row, match = BAD[bad]
    with pytest.raises(DistillationError, match=match):
        TokenClassificationData([*ROWS, row], tokenizer=tokenizer).setup("fit")


def test_labels_that_do_not_fit_are_refused(tokenizer):
    options = {"tokenizer": tokenizer}
    with pytest.raises(DistillationError, match=r"row 1, word 1 \('man'\): the tag 'B-PER' is not one of the 3 labels"):
        TokenClassificationData(ROWS, labels=["O", "B-LOC", "I-LOC"], **options).setup("fit")
    with pytest.raises(DistillationError, match=r"The data has 5 labels, .* and the task has num_labels=9"):
        attach(TokenClassificationData(ROWS, **options), None, 9).setup("fit")
    with pytest.raises(DistillationError, match=r"are not those of the task or its teacher: \['O', 'B-X'\]"):
        attach(TokenClassificationData(ROWS, labels=["O", "B-PER"], **options), ("O", "B-X"), 2).setup("fit")
    with pytest.raises(DistillationError, match="the tag 7 is a number, and the 2 known are"):
        TokenClassificationData([{"tokens": ["a"], "tags": [7]}], labels=["O", "B-X"], **options).setup("fit")
    with pytest.raises(DistillationError, match="model_scheme='iobes' cannot be written with the labels"):
        TokenClassificationData(ROWS, labels=["O", "B-X", "I-X"], model_scheme="iobes", **options).setup("fit")
    with pytest.raises(DistillationError, match=r"labels.* names a label twice"):
        TokenClassificationData(ROWS, labels=["O", "B-X", "B-X"])
    for option in ("scheme", "broken", "model_scheme"):
        with pytest.raises(DistillationError, match=rf"TokenClassificationData\({option}=\.\.\.\) was given 'x'"):
            TokenClassificationData(ROWS, **{option: "x"})


def test_missing_and_empty_files_are_refused(tmp_path: Path, tokenizer):
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(DistillationError, match=r"train\.txt holds no sentence"):
        TokenClassificationData(tmp_path, tokenizer=tokenizer).setup("fit")
    with pytest.raises(DistillationError, match="holds no rows"):
        TokenClassificationData({"train": []}, tokenizer=tokenizer).setup("fit")
    with pytest.raises(DistillationError, match="There is no split 'test'"):
        TokenClassificationData(ROWS, tokenizer=tokenizer).setup("test")


def test_the_library_of_the_scores_is_missed_before_training(tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "seqeval", None)
    TokenClassificationData(ROWS, tokenizer=tokenizer).setup("fit")  # nothing to evaluate
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[ner\]"):
        TokenClassificationData({"train": ROWS, "dev": ROWS}, tokenizer=tokenizer).setup("fit")


def test_predictions_need_no_tags_and_keep_sentences_whole(tokenizer):
    rows = [{"tokens": ["man"] * 30}, {"tokens": "the old, city"}, {"tokens": []}]
    data = TokenClassificationData({"predict": rows}, tokenizer=tokenizer, max_length=12, eval_batch_size=2)
    with pytest.warns(UserWarning, match="1 sentences have no word"):
        data.setup("predict")
    first, second = data.predict_dataloader()
    assert first["words"] == [["man"] * 30, ["the", "old", ",", "city"]]
    assert first["sentence"].tolist() == [0, 0, 0, 0, 1]
    assert second["words"] == [[]]
    test = TokenClassificationData({"test": ROWS}, tokenizer=tokenizer)
    test.setup("predict")
    assert next(iter(test.predict_dataloader()))["words"] == [row["tokens"] for row in ROWS]


def test_a_teacher_of_another_tokenizer_reads_the_words_of_each_window(tokenizer):
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    rows = [{"tokens": ["houses", "man"] * 8, "tags": ["O"] * 15 + ["B-X"]}]
    data = attach(TokenClassificationData(rows, tokenizer=tokenizer, max_length=12), teacher_tokenizer=other)
    data.setup("fit")
    encoded = data._encoded["train"]
    for row in encoded[list(range(len(encoded)))]:
        ours = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        assert ours in other.decode(row["teacher_input_ids"], skip_special_tokens=True)
        assert len(row["teacher_input_ids"]) - len(row["input_ids"]) <= 1  # a window may begin within a word
    batch = next(iter(data.train_dataloader()))
    assert batch["teacher_input_ids"].shape[0] == batch["input_ids"].shape[0] == len(encoded)


def test_padding_is_rounded_up_and_workers_make_the_same_batches(tokenizer):
    plain = TokenClassificationData(ROWS, tokenizer=tokenizer, pad_to_multiple_of=16)
    plain.setup("fit")
    batch = next(iter(plain.train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    workers = TokenClassificationData(ROWS, tokenizer=tokenizer, pad_to_multiple_of=16, num_workers=1)
    workers.setup("fit")
    for name, value in next(iter(workers.train_dataloader())).items():
        assert torch.equal(value, batch[name]), name
