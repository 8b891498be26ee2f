"""Files answered row by row: every task, every kind of file, in little memory, and nothing half-written."""

from __future__ import annotations

import csv
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification, file_prediction
from lightning_distilbert.data.readers import read_rows
from lightning_distilbert.file_prediction import predict_file
from lightning_distilbert.tasks import MaskedLM, QuestionAnswering, Reranking, Retrieval, Task, TokenClassification
from tests.artefacts import make_artefact

TEXTS = [f"the {'great' if i % 3 else 'very very dull'} movie is number {i}" for i in range(11)]
ROWS = [
    {"id": i, "text": text, "other": f"a film {'and more' * (i % 2)}", "none": None} for i, text in enumerate(TEXTS)
]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines(ROWS, "in.jsonl")
    return tmp_path


@pytest.fixture
def model(tiny_teacher_dir: Path) -> DistillationModule:
    return save(TextClassification(labels=["bad", "good"]), tiny_teacher_dir)


def save(task: Task, source: Path, **student: Any) -> DistillationModule:
    module = DistillationModule(task, student=Student(source=str(source), **student))
    module.save_student("model")
    return module


def lines(rows: list[dict[str, Any]], name: str) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def predict(source: str = "in.jsonl", output: str = "out.jsonl", **options: Any) -> list[dict[str, Any]]:
    count = predict_file("model", source, output, **({"precision": "32-true", "overwrite": True} | options))
    rows = read_rows(output)
    assert count == len(rows)
    return rows


def test_rows_keep_their_fields_and_their_order(model: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    expected = [row | {"prediction": answer} for row, answer in zip(ROWS, model.predict(TEXTS), strict=True)]
    assert predict() == expected
    # in parts: the last one is shorter
    monkeypatch.setattr(file_prediction, "ROWS", 4)
    assert predict() == expected
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl", "model", "out.jsonl"]


def test_no_more_rows_are_held_than_are_answered_together(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_prediction, "ROWS", 4)
    read, seen = 0, []
    rows = file_prediction.iter_rows

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal read
        for row in rows(*arguments, **options):
            read += 1
            yield row

    def watched(self: Any, texts: Any, *arguments: Any) -> list[Any]:
        seen.append((read, len(texts)))
        return [None] * len(texts)

    monkeypatch.setattr(file_prediction, "iter_rows", counted)
    monkeypatch.setattr(DistillationModule, "predict", watched)
    predict()
    # one row to know the columns, all rows to check them, and then part by part
    assert [(number - 12, count) for number, count in seen] == [(4, 4), (8, 4), (11, 3)]


@pytest.mark.parametrize(
    ("task", "rows", "texts"),
    [
        (TextClassification(num_labels=2), {"text": TEXTS}, TEXTS),
        (Retrieval(), {"text": TEXTS}, TEXTS),
        (MaskedLM(top_k=2), {"text": ["a [MASK] film", "[MASK] [MASK]"]}, ["a [MASK] film", "[MASK] [MASK]"]),
        (TokenClassification(labels=["O", "B-PER"]), {"text": TEXTS}, TEXTS),
        (TokenClassification(labels=["O", "B-PER"]), {"tokens": [["a", "man"], ["no"]]}, [["a", "man"], ["no"]]),
        (TokenClassification(labels=["O", "B-PER"]), {"tokens": [["a", "man"]], "text": TEXTS[:1]}, TEXTS[:1]),
        (Reranking(), {"document": TEXTS, "query": TEXTS[::-1]}, list(zip(TEXTS[::-1], TEXTS, strict=True))),
        (QuestionAnswering(doc_stride=4), {"question": ["who", "what is"], "context": ["the man is", "long " * 70]},
         [("who", "the man is"), ("what is", "long " * 70)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Task) else "",
)  # fmt: skip
def test_every_task_finds_its_columns(task: Task, rows: dict[str, Any], texts: Any, tiny_bert_dir, tiny_mlm_dir):
    module = save(task, tiny_mlm_dir if isinstance(task, MaskedLM) else tiny_bert_dir, layers=1)
    table = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    lines(table, "in.jsonl")
    assert [row["prediction"] for row in predict()] == module.predict(texts)


def test_text_columns_are_chosen(model: DistillationModule):
    others = [row["other"] for row in ROWS]
    assert [row["prediction"] for row in predict(text=["other"])] == model.predict(others)
    pairs = list(zip(others, TEXTS, strict=True))
    answers = [row["prediction"] for row in predict(text=["other", "text"])]
    assert answers == model.predict(pairs)
    assert answers != model.predict([(second, first) for first, second in pairs])


def test_kinds_of_files_give_the_same_answers(model: DistillationModule):
    expected = model.predict(TEXTS)
    Path("in.txt").write_text("\ufeff" + "\n\n".join(TEXTS) + "\r\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=rf"{len(TEXTS) - 1} blank lines are left out, the first is line 2"):
        assert predict("in.txt") == [
            {"text": text, "prediction": answer} for text, answer in zip(TEXTS, expected, strict=True)
        ]
    Path("in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*blank")
        predict("in.txt")
    Path("in.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode()))
    assert predict("in.txt.gz") == predict("in.txt")
    Path("in.tsv").write_text("\n".join(["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(TEXTS))]))
    assert [row["prediction"] for row in predict("in.tsv")] == expected
    assert predict("in.tsv")[3] == {"id": "3", "text": TEXTS[3], "prediction": expected[3]}
    with open("in.csv", "w", newline="") as file:
        csv.writer(file).writerows([[i, text] for i, text in enumerate(TEXTS)])
    assert [row["prediction"] for row in predict("in.csv", columns=["n", "text"])] == expected
    with pytest.raises(DistillationError, match="no column 'text'"):
        predict("in.csv")
    assert len(predict("in.csv", columns=["n", "text"], header=True)) == len(TEXTS) - 1
    Path("in.dat").write_text("\n".join(["id;text", *(f"{i};{text}" for i, text in enumerate(TEXTS))]))
    assert [row["prediction"] for row in predict("in.dat", delimiter=";")] == expected


def test_parquet_and_what_json_has_no_word_for(model: DistillationModule):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    import datetime

    days = [datetime.date(2024, 1, 1 + i) for i in range(len(TEXTS))]
    parquet.write_table(arrow.table({"text": TEXTS, "day": days}), "in.parquet")
    rows = predict("in.parquet")
    assert [row["prediction"] for row in rows] == model.predict(TEXTS)
    assert rows[0]["day"] == "2024-01-01"


def test_vectors_as_an_array(tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_prediction, "ROWS", 4)
    module = save(Retrieval(), tiny_bert_dir)
    assert predict_file("model", "in.jsonl", "new/out.npy", precision="32-true") == len(TEXTS)
    array = np.load("new/out.npy")
    assert array.dtype == np.float32
    assert np.array_equal(array, np.array(module.predict(TEXTS), dtype=np.float32))
    assert [path.name for path in Path("new").iterdir()] == ["out.npy"]


def test_an_artefact_answers_as_its_student(model: DistillationModule):
    expected = predict()
    make_artefact(Path("model"), Path("artefact"))
    count = predict_file("artefact", "in.jsonl", "artefact.jsonl")
    answers = read_rows("artefact.jsonl")
    assert count == len(answers) == len(expected)
    for found, wanted in zip(answers, expected, strict=True):
        score = wanted["prediction"].pop("score")
        assert found["prediction"].pop("score") == pytest.approx(score, abs=1e-5)
        assert found == wanted
    with pytest.raises(DistillationError, match="leave out device and precision"):
        predict_file("artefact", "in.jsonl", "again.jsonl", device="cpu")
    assert not Path("again.jsonl").exists()


def test_options_of_the_model_arrive(model: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    assert [row["prediction"] for row in predict(max_length=4)] == model.predict(TEXTS, max_length=4)
    assert model.predict(TEXTS, max_length=4) != model.predict(TEXTS)
    assert all("answer" in row and "prediction" not in row for row in predict(field="answer"))
    sizes, types = [], []
    forward = TextClassification.run

    def watched(self: Any, model: Any, batch: Any) -> Any:
        outputs = forward(self, model, batch)
        sizes.append(len(batch["input_ids"]))
        types.append(outputs["logits"].dtype)
        return outputs

    monkeypatch.setattr(TextClassification, "run", watched)
    predict(batch_size=5)
    assert (sizes, set(types)) == ([5, 5, 1], {torch.float32})
    del types[:]
    predict(precision="bf16-mixed")
    assert set(types) == {torch.bfloat16}
    monkeypatch.setattr(file_prediction, "auto_precision", lambda: "bf16-mixed")
    del types[:]
    predict(precision=None)
    assert set(types) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "has_gpu", "used"), [(None, True, "cuda"), (None, False, "cpu"), ("meta", True, "meta")]
)
def test_device_is_a_gpu_where_there_is_one(given, has_gpu, used, model, monkeypatch: pytest.MonkeyPatch):
    def load(path: Any, device: str) -> Any:
        raise RuntimeError(f"on {device}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(file_prediction, "load", load)
    with pytest.raises(RuntimeError, match=f"on {used}"):
        predict(device=given)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced_only_on_request_and_only_at_the_end(model, monkeypatch: pytest.MonkeyPatch):
    Path("out.jsonl").write_text("mine")
    with pytest.raises(DistillationError, match=r"'out.jsonl' is there already.*--overwrite"):
        predict(overwrite=False)

    def broken(self: Any, texts: Any, *arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, "predict", broken)
        with pytest.raises(KeyboardInterrupt):
            predict()
    assert Path("out.jsonl").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl", "model", "out.jsonl"]
    assert len(predict(overwrite=True)) == len(TEXTS)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"words": "a"}], {}, r"no column 'text'. .*\['words'\]. TextClassification reads text: name others"),
        ([{"words": "a"}], {"text": ["gold"]}, r"no column 'gold'. Its columns are \['words'\]\.$"),
        ([{"text": "a"}], {"text": ["a", "b", "c"]}, "names 3 columns"),
        ([{"text": "a"}, {"text": 3}], {}, "in.jsonl, row 2: 'text' is '3', a int and no text"),
        ([{"text": "a"}, {"other": "b"}], {}, "row 2: 'text' is 'None', a NoneType and no text"),
        ([{"text": ["a", "b"]}], {}, "row 1: .* a list and no text"),
        ([{"text": "a"}, {"text": "b", "prediction": 1}], {}, "row 2 has a field 'prediction' already.*--field"),
        ([], {}, "in.jsonl holds no rows"),
        ([{"text": "a"}], {"source": "gone.jsonl"}, "no file 'gone.jsonl'"),
        ([{"text": "a"}], {"source": "gone.txt"}, "no file 'gone.txt'"),
        ([{"text": "a"}], {"source": "model"}, "no file 'model'"),
        ([{"text": "a"}], {"output": "out.tsv"}, r"suffix .jsonl, or vectors with the suffix .npy"),
        ([{"text": "a"}], {"output": "in.jsonl"}, "is the input, which would be lost"),
        ([{"text": "a"}], {"output": "in.jsonl/out.jsonl"}, "is no folder that you may write to. Choose"),
        ([{"text": "a"}], {"output": "out.npy"}, "is for vectors, and TextClassification gives none"),
        ([{"text": "a"}], {"batch_size": 0}, "batch_size=0"),
        ([{"text": "a"}], {"max_length": 0}, "max_length=0"),
        ([{"text": "a"}], {"max_length": 2}, "max_length=2 leaves no room"),
        ([{"text": "a"}], {"precision": "16"}, "given '16': choose one of 'bf16-mixed', '32-true'"),
        ([{"text": "a"}], {"device": "warp"}, "device='warp' cannot be used here"),
    ],
)  # fmt: skip
def test_mistakes_leave_nothing_behind(rows: Any, options: dict[str, Any], message: str, model):
    lines(rows, "in.jsonl")
    before = sorted(path.name for path in Path().rglob("*"))
    arguments = {"model": "model", "source": "in.jsonl", "output": "out.jsonl"} | options
    with pytest.raises(DistillationError, match=message):
        predict_file(**arguments)
    assert sorted(path.name for path in Path().rglob("*")) == before


def test_a_file_of_lines_by_another_name_says_how_to_call_it(model):
    Path("in.en").write_text("a film\n")
    with pytest.raises(DistillationError, match=r"suffix '\.en', .* Known are \.txt, with a text on each line"):
        predict("in.en")


def test_broken_line_far_down_is_found_before_anything_is_answered(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_prediction, "ROWS", 2)
    with open("in.jsonl", "a") as file:
        file.write("{")
    monkeypatch.setattr(DistillationModule, "predict", None)
    with pytest.raises(DistillationError, match="line 12: not valid JSON"):
        predict()


def test_row_that_the_task_refuses_is_found_before_anything_is_answered(tiny_mlm_dir: Path, monkeypatch):
    save(MaskedLM(), tiny_mlm_dir)
    monkeypatch.setattr(DistillationModule, "predict", None)
    lines([{"text": "a [MASK]" if i != 6 else "a film"} for i in range(9)], "in.jsonl")
    with pytest.raises(DistillationError, match=r"in\.jsonl, row 7: there is no \[MASK\] in it"):
        predict()
    assert not Path("out.jsonl").exists()


def test_error_of_the_model_names_the_rows(model: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_prediction, "ROWS", 4)

    def refuse(self: Any, texts: Any, *arguments: Any) -> Any:
        raise DistillationError("Entry 2 is bad.")

    monkeypatch.setattr(DistillationModule, "predict", refuse)
    with pytest.raises(DistillationError, match=r"in\.jsonl, rows 1 to 4 \(the first is entry 0\): Entry 2 is bad"):
        predict()


def test_numbers_that_are_not_finite_are_no_answer(model: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DistillationModule, "predict", lambda self, texts, *_: [{"score": float("nan")}] * len(texts))
    with pytest.raises(DistillationError, match=r"rows 1 to 11: 'model' answers with numbers that are not finite"):
        predict()


def test_two_columns_are_no_list_of_words(tiny_bert_dir: Path):
    save(TokenClassification(labels=["O", "B-X"]), tiny_bert_dir)
    with pytest.raises(DistillationError, match=r"names \['text', 'other'\], and TokenClassification reads one text"):
        predict(text=["text", "other"])


def test_options_of_tables_are_not_for_lines(model: DistillationModule):
    Path("in.txt").write_text("a film\t7\n")
    with pytest.raises(
        DistillationError, match=r"in\.txt is read with a text on each line, so that columns and header"
    ):
        predict("in.txt", columns=["text", "id"])
    assert predict("in.txt", columns=["text", "id"], delimiter="\t")[0]["id"] == "7"


def test_folder_that_is_no_model(model):
    Path("other").mkdir()
    with pytest.raises(DistillationError, match=r"has no config\.json"):
        predict_file("other", "in.jsonl", "out.jsonl")
