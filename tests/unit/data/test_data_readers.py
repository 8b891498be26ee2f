import csv
import gzip
import json
import math
import os
from pathlib import Path

import pytest

from lightning_distilbert.data.readers import column, kind_of, read_rows, texts
from lightning_distilbert.errors import DistillationError

REAL = os.environ.get("LIGHTNING_DISTILBERT_DATA")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_tsv_knows_no_quoting_and_skips_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufeffQuality\t#1 String\n1\t"open quote\n0\tplain "x" y\r\n\n')
    assert read_rows(path) == [
        {"Quality": "1", "#1 String": '"open quote'},
        {"Quality": "0", "#1 String": 'plain "x" y'},
    ]


def test_tsv_keeps_unusual_line_characters_inside_a_text(tmp_path):
    text = "a\u2028b\x0bc\x85d\re"
    assert read_rows(write(tmp_path / "a.tsv", f"text\tlabel\n{text}\t1\n"))[0]["text"] == text


def test_csv_follows_standard_quoting_as_the_csv_module_writes_it(tmp_path):
    rows = [{"text": 'a, "b"\nc', "label": "1"}, {"text": "x" * 200_000, "label": "0"}]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    limit = csv.field_size_limit()
    assert read_rows(tmp_path / "a.csv") == rows
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_json_lines_and_json_arrays(tmp_path, name):
    rows = [{"text": "a", "label": [1, 2]}, {"text": "b", "label": None}]
    lines = write(tmp_path / name, "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_rows(lines) == rows
    assert read_rows(write(tmp_path / "array.json", json.dumps(rows, indent=1))) == rows


def test_gzipped_text_reads_as_plain_text(tmp_path):
    path = write(tmp_path / "a.tsv.gz", gzip.compress(b"text\tlabel\nhi\t1\n"))
    assert kind_of(path) == ".tsv"
    assert read_rows(str(path)) == [{"text": "hi", "label": "1"}]


def test_parquet_and_datasets_objects(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": None}]
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == rows
    assert read_rows(data) == rows


def test_columns_header_and_delimiter_each_change_what_is_read(tmp_path):
    path = write(tmp_path / "a.tsv", "x\ty\n1\t2\n")
    assert read_rows(path) == [{"x": "1", "y": "2"}]
    assert read_rows(path, columns=["a", "b"]) == [{"a": "x", "b": "y"}, {"a": "1", "b": "2"}]
    assert read_rows(path, columns=["a", "b"], header=True) == [{"a": "1", "b": "2"}]
    other = write(tmp_path / "a.txt", "x;y\n1;'2'\n")
    assert read_rows(other, delimiter=";") == [{"x": "1", "y": "'2'"}]


def test_a_star_column_drops_what_follows(tmp_path):
    path = write(tmp_path / "a.tsv", "1\t2\n3\t4\t5\t6\n")
    assert read_rows(path, columns=["a", "b", "*"]) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    with pytest.raises(DistillationError, match=r"a\.tsv, line 1: 2 fields"):
        read_rows(path, columns=["a", "b", "c", "*"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "text\tlabel\na\t1\nb\n", r"a\.tsv, line 3: 1 fields where the columns are \['text', 'label'\]"),
        ("a.csv", "text,label\na,1,2\n", r"a\.csv, line 2: 3 fields"),
        ("a.csv", 'text,label\n"a"b,1\n', r"a\.csv, line 2: not valid CSV"),
        ("a.tsv", "text\ttext\na\tb\n", "names a column twice"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl, line 2: \[1\] is not a JSON object"),
        ("a.tsv", "text\tlabel\n", "holds no rows"),
        ("a.jsonl", "", "holds no rows"),
        ("a.txt", "text\n", "suffix '.txt', of which the kind is not known"),
        ("a.tsv", b"text\n\xff\xfe\n", "cannot be read as UTF-8"),
        ("a.tsv.gz", "not gzip", "is damaged or not what its suffix says"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 999, mtime=0)[:-9], "is damaged or not what its suffix says"),
        ("a.tsv.gz", gzip.compress(b"text", mtime=0)[:10] + b"\x07" * 20, "is damaged or not"),
        ("a.jsonl", '{"a": 1}\n{"a": "\\ud83d"}', r"a\.jsonl, line 2: '\\ud83d' is one half of a character"),
    ],
)
def test_malformed_files_say_where(tmp_path, name, content, message):
    with pytest.raises(DistillationError, match=message):
        read_rows(write(tmp_path / name, content))


def test_other_bad_sources(tmp_path):
    with pytest.raises(DistillationError, match=r"no file '.*gone\.tsv'"):
        read_rows(tmp_path / "gone.tsv")
    with pytest.raises(DistillationError, match="holds no rows"):
        read_rows([])
    with pytest.raises(DistillationError, match=r"Row 2 is a str \('b'\)"):
        read_rows([{"text": "a"}, "b"])
    with pytest.raises(DistillationError, match="cannot be read from a int"):
        read_rows(3)
    with pytest.raises(DistillationError, match="pass the names"):
        read_rows(write(tmp_path / "a.tsv", "a\tb\n"), header=False)


def test_missing_columns_list_those_present():
    with pytest.raises(DistillationError, match=r"here has no column 'text'. Its columns are \['sentence', 'label'\]"):
        texts([{"sentence": "a", "label": 1}], "text", "here")
    with pytest.raises(DistillationError, match=r"here, row 2: there is no 'text', only \['b'\]"):
        texts([{"text": "a"}, {"b": 1}], "text", "here")
    assert column([{"a": 1}], "b", "here", optional=True) is None
    assert column([{"a": 1}, {}], "a", "here", optional=True) == [1, None]


@pytest.mark.parametrize("value", [None, 3, math.nan, ["a"]])
def test_text_that_is_not_a_string(value):
    with pytest.raises(DistillationError, match=rf"here, row 2: 'text' is .*a {type(value).__name__} and not a string"):
        texts([{"text": "a"}, {"text": value}], "text", "here")


@pytest.mark.skipif(REAL is None, reason="LIGHTNING_DISTILBERT_DATA is not set")
@pytest.mark.parametrize(
    ("name", "columns", "count"),
    [
        ("glue/SST-2/train.tsv", None, 67_349),
        ("glue/SST-2/dev.tsv", None, 872),
        ("glue/CoLA/train.tsv", ["source", "label", "mark", "sentence"], 8_551),
        ("glue/CoLA/dev.tsv", ["source", "label", "mark", "sentence"], 1_043),
        # 3,668 published pairs; this copy lacks the pair 2750203/2750153
        ("glue/MRPC/train.tsv", None, 3_667),
        ("glue/MRPC/dev.tsv", None, 408),
        ("glue/MRPC/test.tsv", None, 1_725),
        ("glue/RTE/train.tsv", None, 2_490),
        ("glue/STS-B/train.tsv", None, 5_749),
        ("glue/STS-B/dev.tsv", None, 1_500),
        ("glue/STS-B/original/sts-test.tsv", ["genre", "file", "year", "id", "score", "a", "b", "*"], 1_379),
        ("ag_news/dev.tsv", ["text", "label"], 10_001),
        ("ag_news/test.tsv", ["text", "label"], 7_600),
    ],
)
def test_real_files_have_the_rows_that_their_readme_says(name, columns, count):
    rows = read_rows(Path(REAL) / name, columns=columns)
    assert len(rows) == count
    assert not any(key.startswith("\ufeff") for key in rows[0])


def test_what_is_no_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(DistillationError, match=r"a\.parquet cannot be read as parquet"):
        read_rows(write(tmp_path / "a.parquet", "nothing"))


def test_a_damaged_parquet_is_named(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [f"text {number}" for number in range(3000)]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[100:5000] = b"\xff" * 4900
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DistillationError, match=r"a\.parquet is damaged"):
        read_rows(tmp_path / "a.parquet")
