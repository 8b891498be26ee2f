from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.quickstart import corpus
from lightning_distilbert.quickstart.corpus import Pair, docstring_pairs, hold_out, normalised, sample

FILLER = "it goes on with quite a number of plain words so that the prose is long enough to count as a document at all"


def prose(topic: str) -> str:
    return f"The {topic} is told in some words and {FILLER}, about the {topic} and nothing else."


def function(name: str, summary: str, document: str) -> str:
    return f'def {name}():\n    """{summary}\n\n    {document}\n\n    Args:\n        x: Something.\n    """\n\n'


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two packages that would fail if they were imported; ``heldout`` plays the part of the test packages."""
    files = {
        "trained/__init__.py": "raise RuntimeError('imported')\n"
        + function("a", "Sort the first rows", prose("first")),
        "trained/b.py": function("b", "Plot the second line", prose("second"))
        + function("c", "PLOT the  second line!", prose("third"))  # the query again
        + function("d", "Draw something different here", prose("SECOND"))  # the document again
        + function("e", "Too short", prose("fourth"))
        + function("f", "Has no long prose", "Only these words."),
        "trained/c.py": function("shared", "Shared by both packages", prose("fifth")),
        "trained/tests/test_x.py": function("t", "Test the rows well", prose("sixth")),
        "trained/externals/x.py": function("v", "Carry another project along", prose("seventh")),
        "trained/broken.py": function("x", "Break the file here", prose("eighth")) + "def (:",
        "heldout/__init__.py": function("g", "Fit a model well", prose("ninth")),
        "heldout/a.py": function("shared", "Shared by both packages", prose("tenth")),
    }
    for name, text in files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "site/trained/latin.py").write_bytes(
        function("y", "Write in Latin one", prose("caf\u00e9")).encode("latin-1")
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(corpus, "TEST_PACKAGES", ("heldout",))
    yield tmp_path / "site"
    assert "trained" not in sys.modules


def read(**kwargs: object) -> list[Pair]:
    return docstring_pairs(**({"packages": ("trained", "heldout"), "stdlib": False, "progress": False} | kwargs))


@pytest.mark.usefixtures("packages")
def test_pairs_are_unique_ordered_and_leave_out_what_is_no_document() -> None:
    pairs = read()
    assert [(pair.query, pair.package) for pair in pairs] == [
        ("Sort the first rows", "trained"),
        ("Plot the second line", "trained"),
        ("Fit a model well", "heldout"),
        ("Shared by both packages", "heldout"),
    ]
    assert pairs[0].document == prose("first")


@pytest.mark.usefixtures("packages")
def test_what_is_held_out_keeps_its_texts_in_any_order_of_the_packages() -> None:
    assert set(read()) == set(read(packages=("heldout", "trained")))
    assert read(packages=("heldout", "trained"))[0].package == "heldout"


@pytest.mark.usefixtures("packages")
def test_files_that_cannot_be_read_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    read(progress=True)
    assert "unreadable=2" in capsys.readouterr().err
    read()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("packages")
def test_sentences_of_many_documents_go_and_may_leave_too_little(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = f"Read this first since {FILLER}."
    text = "".join(
        function(f"f{n}", f"Do the thing number {word}", f"{prose(word)} {same}")
        for n, word in enumerate(("one", "two", "three", "four"))
    )
    (packages / "trained/d.py").write_text(text + function("z", "Do the last thing", f"Only {same}"))
    documents = {pair.query: pair.document for pair in read()}
    assert documents["Do the thing number two"] == prose("two")
    monkeypatch.setattr(corpus, "BOILERPLATE", 6)
    documents = {pair.query: pair.document for pair in read()}
    assert documents["Do the thing number two"] == f"{prose('two')} {same}"


def test_cache_is_used_until_something_changes(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "deep" / "cache"
    first = read(cache=cache)
    (file,) = cache.iterdir()
    assert [Pair(**json.loads(line)) for line in file.read_text().splitlines()] == first

    def unexpected(*_: object) -> None:
        raise AssertionError("parsed again")

    with monkeypatch.context() as patched:
        patched.setattr(corpus, "candidates", unexpected)
        assert read(cache=cache) == first
        assert read(cache=cache, limit=2) == sample(first, 2)
        with pytest.raises(AssertionError, match="parsed again"):
            read(cache=cache, packages=("trained",))
    file.write_text(file.read_text()[:-9])  # cut short by hand: it is made anew
    assert read(cache=cache) == first
    os.utime(packages / "trained/c.py", (1, 1))
    assert read(cache=cache) == first
    assert len(list(cache.iterdir())) == 2


def test_a_version_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {"torch": Path("anywhere")}
    first = corpus.fingerprint(roots)
    assert corpus.fingerprint(roots) == first
    monkeypatch.setattr(corpus.importlib.metadata, "version", lambda name: "0.0")
    assert corpus.fingerprint(roots) != first


@pytest.mark.usefixtures("packages")
def test_a_write_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_limit_keeps_order_and_something_of_each_package() -> None:
    pairs = [Pair(f"query {n}", f"document {n}", "big") for n in range(50)] + [Pair("q", "d", "small")]
    kept = sample(pairs, 5)
    assert len(kept) == 5
    assert [pair for pair in pairs if pair in kept] == kept
    assert kept[-1].package == "small"
    assert sample(pairs, 99) == pairs


def test_the_standard_library_is_read_without_its_tests_alike_in_each_process(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib; from pathlib import Path; from lightning_distilbert.quickstart import corpus\n"
        "root = Path(corpus.sysconfig.get_paths()['stdlib']) / 'json'\n"
        "pairs = corpus.sample(corpus.unique_pairs(corpus.candidates({'python': root}, False)), 9)\n"
        "print(hashlib.sha256(repr(pairs).encode()).hexdigest(), len(pairs))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    (output,) = outputs
    assert output.split()[0] != hashlib.sha256(b"[]").hexdigest()
    assert int(output.split()[1]) > 3


def test_no_test_of_an_installed_package_is_read() -> None:
    files = corpus.source_files(corpus.package_folder("numpy"))
    assert len(files) > 50
    assert not [file for file in files if {"tests", "test"} & set(file.parts[-3:]) or file.name.startswith("test_")]
    assert files == sorted(files)


def test_hold_out_shares_no_text() -> None:
    pairs = [Pair("a", "b", "torch"), Pair("c", "d", "numpy"), Pair("e", "f", "sklearn"), Pair("g", "h", "scipy")]
    train, test = hold_out(pairs)
    assert [pair.package for pair in train] == ["torch", "scipy"]
    assert [pair.package for pair in test] == ["numpy", "sklearn"]
    assert hold_out(pairs, packages=("torch",))[1] == pairs[:1]


def test_bad_input_is_an_error(packages: Path) -> None:
    with pytest.raises(DistillationError, match="'scikit-learn' is not installed"):
        read(packages=("scikit-learn",))
    with pytest.raises(DistillationError, match="'no_such_package' is not installed"):
        read(packages=("no_such_package",))
    with pytest.raises(DistillationError, match="no package at all"):
        read(packages=())
    with pytest.raises(DistillationError, match="limit=0"):
        read(limit=0)
    with pytest.raises(DistillationError, match=r"2 pairs to train on and 0 held out \(numpy\)"):
        hold_out(read(packages=("trained",))[:2], packages=("numpy",))
    (packages / "empty").mkdir()
    (packages / "empty/__init__.py").write_text("")
    with pytest.raises(DistillationError, match="No docstring of empty"):
        read(packages=("empty",))


def test_normalised_ignores_case_spacing_and_punctuation() -> None:
    assert normalised("PLOT the\n second-line!") == normalised("plot the second line")
    assert normalised("plot it") != normalised("plot them")
