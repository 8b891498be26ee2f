from __future__ import annotations

import gzip

import pytest

from lightning_distilbert.data.conll import in_columns, read_conll, tagged_splits
from lightning_distilbert.errors import DistillationError

CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O


-DOCSTART- -X- -X- O
Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def write(path, text=CONLL):
    path.write_bytes(text.encode())
    return path


def test_sentences_end_at_blank_lines_and_documents(tmp_path):
    wanted = [
        {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"]},
        {"tokens": ["Peter", "Blackburn"], "tags": ["I-PER", "I-PER"]},
    ]
    assert read_conll(write(tmp_path / "eng.train")) == wanted
    assert read_conll(write(tmp_path / "windows.txt", "\ufeff" + CONLL.replace("\n", "\r\n"))) == wanted
    (tmp_path / "eng.train.gz").write_bytes(gzip.compress(CONLL.encode()))
    assert read_conll(tmp_path / "eng.train.gz") == wanted


def test_columns_are_named_in_order_and_may_be_left_out(tmp_path):
    path = write(tmp_path / "a.txt", "1 Rome B-LOC O\n2 is O O\n")
    assert read_conll(path, columns=["", "tokens", "tags", "inner"]) == [
        {"tokens": ["Rome", "is"], "tags": ["B-LOC", "O"], "inner": ["O", "O"]}
    ]
    assert read_conll(path) == [{"tokens": ["1", "2"], "tags": ["O", "O"]}]
    assert read_conll(write(tmp_path / "words.txt", "Rome\nis\n")) == [{"tokens": ["Rome", "is"]}]


def test_a_tab_parts_columns_in_tsv_files_and_where_it_is_asked_for(tmp_path):
    text = "New York\tB-LOC\n \tO\n\t\n# a line\tO\n"
    wanted = [{"tokens": ["New York", " "], "tags": ["B-LOC", "O"]}, {"tokens": ["# a line"], "tags": ["O"]}]
    assert read_conll(write(tmp_path / "a.tsv", text)) == wanted
    assert read_conll(write(tmp_path / "a.txt", text), delimiter="\t") == wanted
    assert read_conll(tmp_path / "a.tsv", comments="#") == wanted[:1]


def test_odd_characters_are_words_and_no_white_space(tmp_path):
    words = ["\u200b", "\xa0", "\x85", "\x1c", "\u2028", "\x00", "é"]
    rows = read_conll(write(tmp_path / "a.txt", "".join(f"{word} O\n" for word in words)))
    assert rows == [{"tokens": words, "tags": ["O"] * len(words)}]


def test_what_is_wrong_is_named_by_file_and_line(tmp_path):
    with pytest.raises(DistillationError, match=r"a\.txt, line 2: 2 columns where other lines have 3: 'b O'"):
        read_conll(write(tmp_path / "a.txt", "a NN O\nb O\n"))
    with pytest.raises(DistillationError, match=r"line 1: 3 columns where the columns are \['tokens', 'tags'\]"):
        read_conll(tmp_path / "a.txt", columns=["tokens", "tags"])
    # two tags of one word, in a file of a word and a tag
    overlapping = write(tmp_path / "two.txt", "the O\nman B-PER B-LOC\nin O\nRome B-LOC B-PER\n")
    for columns, wanted in (
        (None, "other lines have 2"),
        (["tokens", "tags"], r"the columns are \['tokens', 'tags'\]"),
    ):
        message = rf"two\.txt, line 2: 3 columns where {wanted}: 'man B-PER B-LOC'\. Mend the line, or name the columns"
        with pytest.raises(DistillationError, match=message):
            read_conll(overlapping, columns=columns)
    with pytest.raises(DistillationError, match="names a column twice"):
        read_conll(tmp_path / "a.txt", columns=["tokens", "", "", "tokens"])
    for name, text in (("empty.txt", ""), ("blank.txt", "\n \n\t\n"), ("document.txt", "-DOCSTART- O\n\n")):
        with pytest.raises(DistillationError, match=f"{name} holds no sentence"):
            read_conll(write(tmp_path / name, text))
    with pytest.raises(DistillationError, match=r"There is no file .*none\.txt"):
        read_conll(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("café O\n".encode("latin-1"))
    with pytest.raises(DistillationError, match=r"latin\.txt cannot be read as UTF-8"):
        read_conll(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    "names",
    [
        ("eng.train", "eng.testa", "eng.testb"),
        ("train.txt", "dev.txt", "test.txt"),
        ("train.jsonl", "valid.conll", "test.iob.gz"),
    ],
)
def test_a_folder_s_splits_are_known_by_their_names(tmp_path, names):
    for name in (*names, "SOURCE.txt", "train.py", "README.md"):
        write(tmp_path / name)
    assert tagged_splits(tmp_path) == dict(
        zip(("train", "validation", "test"), (tmp_path / n for n in names), strict=True)
    )
    assert tagged_splits(str(tmp_path / names[0])) == {"train": tmp_path / names[0]}


def test_a_folder_with_two_files_of_a_split_or_none_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="no file named after a split"):
        tagged_splits(tmp_path)
    for name in ("a.train.iob", "b.train.iob"):
        write(tmp_path / name)
    with pytest.raises(DistillationError, match=r"more than one file for 'train': \['a.train.iob', 'b.train.iob'\]"):
        tagged_splits(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In IN O\nRome NNP I-LOC\n", True),
        ("In O\nRome extra B-LOC\n", True),  # a broken line is for the reader to refuse
        ("In IN\nRome NNP\n\nthe DT\ncity NN\n", True),
        ("In\nRome\n\nParis\n", True),
        ("\n\nin Rome\nin Paris\n", False),  # a blank line parts nothing here
        ("so do I\n", False),
        ("a man in Rome\n\nthe city\n", False),
        ("", False),
    ],
)
def test_columns_are_told_from_plain_text(tmp_path, text, expected):
    (tmp_path / "more.txt").write_text(text)
    assert in_columns(tmp_path / "more.txt") is expected
