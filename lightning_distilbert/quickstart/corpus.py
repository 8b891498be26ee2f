"""A real corpus that is on every machine: the docstrings of installed packages and of the standard library."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.quickstart import docstrings as rules
from lightning_distilbert.quickstart.docstrings import (
    boilerplate,
    docstrings,
    reads_as_prose,
    summary_and_prose,
    without,
)

# the last five are installed with torch, transformers, sentence-transformers and Lightning
PACKAGES = (
    *("torch", "transformers", "numpy", "scipy", "sklearn"),
    *("sympy", "networkx", "torchmetrics", "huggingface_hub", "sentence_transformers"),
)
TEST_PACKAGES = ("numpy", "sklearn")
STDLIB = "python"
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 3, 30
MIN_DOCUMENT_WORDS = 30
# a sentence in this many documents says nothing about any one of them ("See the superclass for more information.")
BOILERPLATE = 4
# tests, what a package only carries along (it would count for the wrong package), and what is no package at all
SKIPPED_FOLDERS = frozenset(
    "test tests testing/_internal idle_test idlelib lib2to3 turtledemo pydoc_data site-packages dist-packages "
    "externals _external _vendor vendored third_party array_api_compat array_api_extra _bundled _bundle __pycache__ "
    "encodings benchmarks".split()
)
TEST_FILE = re.compile(r"^(test_.*|.*_test|conftest|tests?|antigravity|this)\.py$")
LONG_STRING = re.compile(r"(\"\"\"|''')(.*?)\1", re.DOTALL)


class Pair(NamedTuple):
    """One query, the one document that answers it, and the package that both come from."""

    query: str
    document: str
    package: str


def docstring_pairs(
    packages: Sequence[str] = PACKAGES,
    stdlib: bool = True,
    cache: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> list[Pair]:
    """Read (summary line, prose) pairs out of installed packages, without importing any of them.

    A docstring's summary line is the query; the prose before its first section or code, of at least 30 words, is the
    document. No query and no document occurs twice, whatever its case and punctuation: the packages of
    `TEST_PACKAGES` come first when two texts are the same, so that no text of theirs is left in another package. The
    order follows the packages as given, then path and line, and so does not differ between two runs.

    Args:
        packages: Import names of installed packages.
        stdlib: Whether to read the standard library too, as package ``"python"``.
        cache: A folder in which to keep the result. It is found again for the same versions of Python and of the
            packages.
        limit: How many pairs to keep at most in all: a fixed sample that has something of each package.
        progress: Whether to show a progress bar.

    Returns:
        The pairs.

    Raises:
        DistillationError: If a package is not installed, if no pair is found at all, or if ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise DistillationError(f"limit={limit}: the corpus needs at least one pair. Leave it out to have them all.")
    roots = {package: package_folder(package) for package in packages}
    if stdlib:
        roots[STDLIB] = Path(sysconfig.get_paths()["stdlib"])
    file = None if cache is None else Path(cache) / f"docstrings-{fingerprint(roots)}.jsonl"
    pairs = read_pairs(file) if file is not None else None
    if pairs is None:
        pairs = unique_pairs(candidates(roots, progress))
        if not pairs:
            raise DistillationError(
                f"No docstring of {', '.join(roots) or 'no package at all'} has a summary line and "
                f"{MIN_DOCUMENT_WORDS} words of prose. Name packages that are documented."
            )
        if file is not None:
            write_pairs(file, pairs)
    return pairs if limit is None else sample(pairs, limit)


def hold_out(pairs: Iterable[Pair], packages: Sequence[str] = TEST_PACKAGES) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those to train on and those of the packages held out as test.

    Args:
        pairs: The pairs.
        packages: The packages to hold out.

    Returns:
        The training pairs and the test pairs.

    Raises:
        DistillationError: If either side is empty.

    Example:
        >>> train, test = hold_out([Pair("a", "b", "torch"), Pair("c", "d", "numpy")])
        >>> [pair.query for pair in test]
        ['c']
    """
    pairs = list(pairs)
    train = [pair for pair in pairs if pair.package not in packages]
    test = [pair for pair in pairs if pair.package in packages]
    if not train or not test:
        raise DistillationError(
            f"{len(train)} pairs to train on and {len(test)} held out ({', '.join(packages)}): both need some. "
            f"The pairs come from {', '.join(sorted({pair.package for pair in pairs})) or 'nowhere'}."
        )
    return train, test


def package_folder(package: str) -> Path:
    """Return where a package lies, without importing it.

    Raises:
        DistillationError: If it is not installed, or is a single file.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DistillationError(
            f"The package {package!r} is not installed here, so its docstrings cannot be read. "
            "Install it, or leave it out of packages. (Write its import name: sklearn, not scikit-learn.)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def source_files(folder: Path) -> list[Path]:
    """Return the Python files under a folder, sorted by path, without tests and without what is only carried along."""
    found = []
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).name
        folders[:] = [name for name in folders if not SKIPPED_FOLDERS & {name, f"{inside}/{name}"}]
        found += [Path(parent, name) for name in files if name.endswith(".py") and not TEST_FILE.match(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def candidates(roots: dict[str, Path], progress: bool) -> Iterator[Pair]:
    """Yield each docstring of some packages that has a summary line and prose under it."""
    files = [(package, path) for package, root in roots.items() for path in source_files(root)]
    unread = 0
    bar = tqdm(files, desc="reading docstrings", unit="file", disable=not progress, mininterval=0.5)
    for package, path in bar:
        try:
            found = list(file_pairs(path, package))
        except (OSError, SyntaxError, ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            unread += 1
            bar.set_postfix(unreadable=unread)
            continue
        yield from found


def file_pairs(path: Path, package: str) -> Iterator[Pair]:
    """Yield the pairs of one file."""
    source = path.read_text(encoding="utf-8")
    # parsing is slow, and most files without any long string have no prose either
    if not any(len(match[2]) > 4 * MIN_DOCUMENT_WORDS for match in LONG_STRING.finditer(source)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        texts = list(docstrings(source))
    for text in texts:
        query, document = summary_and_prose(text)
        if readable(query, document):
            yield Pair(query, document, package)


def readable(query: str, document: str) -> bool:
    """Return whether both texts are long enough and are prose."""
    return (
        MIN_QUERY_WORDS <= len(query.split()) <= MAX_QUERY_WORDS
        and (query[0].isalnum() or query[0] in "\"'(")
        and reads_as_prose(query, MIN_QUERY_WORDS)
        and reads_as_prose(document, MIN_DOCUMENT_WORDS)
    )


def unique_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Drop sentences that many documents share, then every pair whose query or document was seen before.

    The held-out packages are looked at first, so that none of their texts stays in a package to train on.
    """
    first = list(without_repeats(pairs))
    shared = boilerplate((pair.document for pair in first), BOILERPLATE)
    shorter = (pair._replace(document=without(pair.document, shared)) for pair in first)
    return list(without_repeats(pair for pair in shorter if readable(pair.query, pair.document)))


def without_repeats(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yield, in the order given, the pairs that share neither query nor document with a pair before them."""
    numbered = list(enumerate(pairs))
    seen: set[str] = set()
    kept: dict[int, Pair] = {}
    for number, pair in sorted(numbered, key=lambda item: item[1].package not in TEST_PACKAGES):
        # one set for both sides: a query that is another pair's document would be a leak as well
        keys = {normalised(pair.query), normalised(pair.document)}
        if not keys & seen:
            kept[number] = pair
            seen |= keys
    return (kept[number] for number in sorted(kept))


def normalised(text: str) -> str:
    """Return a text's letters and digits in lower case, single-spaced.

    Example:
        >>> normalised("Sort,  the Rows.")
        'sort the rows'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def sample(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Keep at most so many pairs, in their order: the same share of each package, and at least one of each."""
    if limit >= len(pairs):
        return list(pairs)
    # a digest and not hash(): Python salts that anew in each process
    ranked = sorted(range(len(pairs)), key=lambda number: hashlib.sha256("\n".join(pairs[number]).encode()).digest())
    first = {pairs[number].package: number for number in reversed(ranked)}
    kept = list(dict.fromkeys([*first.values(), *ranked]))[:limit]
    return [pairs[number] for number in sorted(kept)]


def fingerprint(roots: dict[str, Path]) -> str:
    """Return a key that changes with the packages, their versions, Python's version and the rules of extraction."""
    distributions = importlib.metadata.packages_distributions()
    facts = [sys.version, inspect.getsource(rules), inspect.getsource(sys.modules[__name__])]
    for package, root in roots.items():
        versions = [importlib.metadata.version(name) for name in sorted(set(distributions.get(package, [])))]
        # a package without a distribution (a source checkout) has no version: its files' times stand for it
        changed = [] if versions else [str(root), *(path.stat().st_mtime for path in source_files(root))]
        facts.append(f"{package} {versions} {changed}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def read_pairs(file: Path) -> list[Pair] | None:
    """Read pairs from a JSONL file, or None if it does not exist or does not hold pairs."""
    try:
        with file.open(encoding="utf-8") as lines:
            return [Pair(**json.loads(line)) for line in lines] or None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_pairs(file: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSONL, at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs), encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
