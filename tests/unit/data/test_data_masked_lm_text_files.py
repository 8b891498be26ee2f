from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from lightning_distilbert.data.text_files import CHUNK_TEXTS, Rows, TextFile, chunks, text_parts
from lightning_distilbert.errors import DistillationError

TEXT = "first line \r\n\r\n\n second line\nthird\n"
LINES = ["first line", "", "", "second line", "third"]


def texts(source, **options) -> list[str]:
    return [text for part in text_parts(source, **options) for text in part.texts()]


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "wiki.train.tokens", "no_suffix"])
def test_lines_of_plain_and_compressed_text(tmp_path, name: str):
    assert texts(write(tmp_path / name, "\ufeff" + TEXT)) == LINES


def test_blank_lines_end_a_text(tmp_path):
    path = write(tmp_path / "a.txt", TEXT)
    assert texts(str(path), separator="blank_line") == ["first line", "second line third"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.jsonl.zst"])
def test_json_lines(tmp_path, name: str):
    rows = [{"body": "one\ntwo", "id": 1}, {"body": "three"}]
    path = write(tmp_path / name, "\n".join(map(json.dumps, rows)) + "\n")
    assert texts(path, column="body") == ["one\ntwo", "three"]
    with pytest.raises(DistillationError, match=r"row 1: there is no column 'text'. Its columns are \['body', 'id'\]"):
        texts(path)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
def test_json_array(tmp_path, name: str):
    path = write(tmp_path / name, json.dumps([{"text": "one"}, {"text": "two"}], indent=1))
    assert texts(path) == ["one", "two"]


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [f"text {number}" for number in range(3000)]
    parquet.write_table(pyarrow.table({"text": values, "id": list(range(3000))}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == values
    with pytest.raises(DistillationError, match=r"has no column 'body'. Its columns are \['text', 'id'\]"):
        texts(tmp_path / "a.parquet", column="body")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "b.parquet")
    with pytest.raises(DistillationError, match="row 2: 'text' is 'None', a NoneType and not a string"):
        texts(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(DistillationError, match=r"c\.parquet cannot be read as parquet"):
        texts(tmp_path / "c.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[100:5000] = b"\xff" * 4900
    (tmp_path / "d.parquet").write_bytes(data)
    with pytest.raises(DistillationError, match=r"d\.parquet is damaged"):
        texts(tmp_path / "d.parquet")


def test_patterns_folders_and_lists(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt.gz", "sub/c.txt", "notes.pdf", "d.csv"):
        write(tmp_path / name, name)
    (tmp_path / "d.csv").unlink()
    assert texts(str(tmp_path / "*.txt*")) == ["a.txt.gz", "b.txt"]
    assert texts(str(tmp_path / "**" / "*.txt")) == ["b.txt", "sub/c.txt"]
    assert texts(tmp_path) == ["a.txt.gz", "b.txt", "sub/c.txt"]
    # a file that is named twice is read once
    assert texts([tmp_path / "sub", str(tmp_path / "b.txt"), str(tmp_path / "*.txt")]) == ["sub/c.txt", "b.txt"]
    monkeypatch.chdir(tmp_path)
    assert texts(["b.txt", tmp_path / "b.txt", "sub/../b.txt"]) == ["b.txt"]


def test_rows_in_memory_and_data_sets():
    datasets = pytest.importorskip("datasets")
    rows = [{"text": "one", "id": 1}, {"text": "two", "id": 2}, {"text": "three", "id": 3}]
    assert texts(rows) == ["one", "two", "three"]
    dataset = datasets.Dataset.from_list(rows)
    assert texts(dataset) == ["one", "two", "three"]
    streamed = dataset.to_iterable_dataset(num_shards=2)
    parts = text_parts(streamed)
    assert [list(part.texts()) for part in parts] == [["one", "two"], ["three"]]
    assert parts[0].fingerprint() != parts[1].fingerprint()
    with pytest.raises(DistillationError, match="row 1: there is no column 'body'"):
        texts(streamed, column="body")


def shards(*sizes, prefix="row"):
    """A stream of as many shards of such sizes."""
    datasets = pytest.importorskip("datasets")

    def rows(shard):
        for number, size in shard:
            yield from ({"text": f"{prefix} {number}.{place}", "id": place} for place in range(size))

    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shard": list(enumerate(sizes))})


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (lambda stream: stream, 3),
        (lambda stream: stream.shuffle(seed=1, buffer_size=7), 3),
        (lambda stream: stream.filter(lambda row: row["id"] % 3), 3),
        (lambda stream: stream.map(lambda row: {"text": row["text"].upper()}), 3),
        (lambda stream: stream.remove_columns("id").rename_column("text", "body").rename_column("body", "text"), 3),
        (lambda stream: interleaved(stream, concatenated=True), 5),
        (lambda stream: stream.take(30), 1),
        (lambda stream: stream.skip(30), 1),
        (lambda stream: stream.map(lambda row: row).skip(5).select_columns("text"), 1),
        (lambda stream: interleaved(stream), 1),
        (lambda stream: interleaved(stream, stopping_strategy="all_exhausted"), 1),
        (lambda stream: stream.map(lambda row, index: {"text": f"{row['text']} {index}"}, with_indices=True), 1),
        (lambda stream: stream.map(lambda rows: {"text": rows["text"][:1]}, batched=True, remove_columns="id"), 1),
        (lambda stream: interleaved(stream.take(4), concatenated=True), 1),
    ],
)
def test_a_stream_gives_its_own_rows_whatever_it_is_made_of(made, parts):
    """`take`, `skip` and the like are split over the shards by `datasets`, and what the shards give is other rows."""
    stream = made(shards(3, 40, 20))
    found = [list(part.texts()) for part in text_parts(stream)]
    assert len(found) == parts
    given = [row["text"] for row in stream]
    assert Counter(text for part in found for text in part) == Counter(given)
    if parts == 1:
        assert found == [given]


def interleaved(stream, concatenated=False, **options):
    datasets = pytest.importorskip("datasets")
    other = shards(9, 4, prefix="other")
    return (
        datasets.concatenate_datasets([stream, other])
        if concatenated
        else datasets.interleave_datasets([stream, other], **options)
    )


def test_a_fingerprint_changes_with_the_content(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    first = TextFile(path).fingerprint()
    assert TextFile(path).fingerprint() == first
    read = [TextFile(path, column="body"), TextFile(path, separator="blank_line")]
    assert all(one.fingerprint() != first for one in read)
    write(path, "two")
    assert TextFile(path).fingerprint() != first
    rows = [{"text": "one"}]
    assert Rows(rows).fingerprint() == Rows([{"text": "one"}]).fingerprint() != Rows([{"text": "two"}]).fingerprint()


def test_chunks_hold_all_texts_in_order_and_end_by_number_or_size():
    rows = [{"text": str(number)} for number in range(2 * CHUNK_TEXTS + 5)]
    made = list(chunks(Rows(rows)))
    assert [len(one) for one in made] == [CHUNK_TEXTS, CHUNK_TEXTS, 5]
    assert [text for one in made for text in one] == [row["text"] for row in rows]
    assert [len(one) for one in chunks(Rows([{"text": "a" * 200_000}] * 5))] == [2, 2, 1]
    # of several blank lines one is kept, and none in front
    assert list(chunks(Rows([{"text": text} for text in ("", "a", "", "", "b", "")]))) == [["a", "", "b", ""]]
    assert list(chunks(Rows([{"text": ""}] * 3))) == []


def damaged(suffix: str) -> bytes:
    text = "\n".join(f"line {number} of a text" for number in range(20_000)).encode()
    if suffix == ".gz":
        return gzip.compress(text)[:-20_000]
    return pytest.importorskip("zstandard").ZstdCompressor().compressobj().compress(text * 5)[:9_000]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_and_false_archives_are_refused(tmp_path, suffix: str):
    path = tmp_path / f"a.txt{suffix}"
    data = damaged(suffix)
    path.write_bytes(data)
    with pytest.raises(DistillationError, match=rf"a\.txt\{suffix} is damaged or not what its suffix says"):
        texts(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DistillationError, match="is damaged or not what its suffix says"):
        texts(path)


def test_zstandard_may_look_far_back(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    far = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=far).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(compressor.compress(b"one\ntwo") + compressor.flush())
    assert texts(tmp_path / "a.txt.zst") == ["one", "two"]


def test_several_frames_of_zstandard_are_one_text(tmp_path):
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(compress(b"one\ntw") + compress(b"o\nthree"))
    assert texts(tmp_path / "a.txt.zst") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("data", "match"),
    [(b"good\nab\x00c", "line 2: there is a zero byte"), (b"good\n\xff\xfe", "cannot be read as UTF-8 text")],
)
def test_binary_files_are_refused(tmp_path, data: bytes, match: str):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DistillationError, match=match):
        texts(tmp_path / "a.txt")


def test_bad_sources(tmp_path):
    for name in ("a.csv", "notes.pdf"):
        write(tmp_path / name, "a")
    for source, match in (
        (str(tmp_path / "*.txt"), "No file matches the pattern"),
        (str(tmp_path / "missing.txt"), "There is no file or folder"),
        (tmp_path, "has no file with one of the suffixes"),
        (tmp_path / "a.csv", r"a\.csv is a table"),
        (7, "A int .* is no source of text"),
        ([], "is no source of text"),
        ([{"text": "a"}, "b"], "is no source of text"),
    ):
        with pytest.raises(DistillationError, match=match):
            texts(source)
    with pytest.raises(DistillationError, match="row 2: 'text' is '7', a int and not a string"):
        texts([{"text": "a"}, {"text": 7}])
    with pytest.raises(DistillationError, match=r"row 2: '\\ud83d' in 'text' is one half of a character"):
        texts([{"text": "\u00e9"}, {"text": "a \ud83d"}])
    write(tmp_path / "a.jsonl", "[1, 2]")
    with pytest.raises(DistillationError, match="is not a JSON object"):
        texts(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl.zst", '{"text": "a"}\n{')
    with pytest.raises(DistillationError, match=r"b\.jsonl\.zst, line 2: not valid JSON"):
        texts(tmp_path / "b.jsonl.zst")


def test_a_carriage_return_within_a_line_ends_none(tmp_path):
    assert texts(write(tmp_path / "a.txt", "one\rtwo\r\nthree\n")) == ["one\rtwo", "three"]
