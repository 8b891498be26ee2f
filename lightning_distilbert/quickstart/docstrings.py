"""From one docstring to a query and a document: the summary line, and the prose under it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator

SECTIONS = (
    "args|arguments|parameters|params|param|kwargs|keyword args|keyword arguments|other parameters|options|inputs?|"
    "outputs?|returns?|yields?|receives|raises|warns|warnings?|examples?|usage|usage examples?|example usage|"
    "notes?|see also|references?|citations?|shapes?|attributes|members|methods|functions|classes|exceptions|todo|"
    "class attributes|properties|variables|constants|public functions|tips?|important|caution|attention|authors?|"
    "copyright|license|contents|routine listings|syntax|deprecated|side effects|keyword only|types?|supported modes|"
    "algorithm|implementation notes|implementation details|background|details"
)
# "Args:" or "Note: text", alone or with text behind the colon; "Parameters" without a colon only alone on its line
SECTION = re.compile(rf"^\W*({SECTIONS})\W*$|^\W*({SECTIONS})\s*(\(\w+\))?\s*::?(\s|$)", re.IGNORECASE)
FIELD = re.compile(r"^\s*[:@](param|parameter|arg|args|return|returns|rtype|type|raises|ivar|cvar|keyword|yields)\b")
RULE = re.compile(r"^\s*([=\-~^\"'#*+_`.:])\1{2,}[\s=\-+|]*$")
CODE = re.compile(
    r"^\s*(>>>|\.\.\. |```|~~~|\$ |%|#|\||\+[-=]|<\w+[^>]*>$|@\w|import \w|from \w+ import)|^\s*\w[\w.]*\s*=\s*\S"
)
# "x (int): text", "max_size: text", "x -- text": a list of arguments without a heading
ARGUMENT = re.compile(r"^\s*[*`]*\w+[*`]*\s*\(.*\)[*`]*\s*:|^\s*[*`]*\w+_\w*[*`]*\s*:\s|^\s*[*`]*\w+[*`]*\s+--\s")
DIRECTIVE = re.compile(r"^\s*\.\. *([\w-]*)(::)?")
# what these hold is about the text, not part of it: it is left out, and the prose goes on after it
PASSED_OVER = frozenset(
    "versionadded versionchanged deprecated math note warning tip important caution seealso index currentmodule "
    "module automodule".split()
)
SIGNATURE = re.compile(r"^(?:[\w, ]+=\s*)?[\w.]+\s?\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:->.*)?$")
SENTENCE = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)(?<=[.!?])\s+(?=[A-Z\"'(])")
MARKUP = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r":[\w:+-]+:`+([^`<]+?)\s*<[^`>]*>`+", r"\1"),
        (r":[\w:+-]+:`+~?(?:[\w.]+\.)?([^`]*)`+", r"\1"),
        (r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1"),
        (r"\[~?`+~?(?:[\w.]+\.)?([^`]*)`+\]", r"\1"),
        (r"`([^`<]+?)\s*<[^`>]*>`_*", r"\1"),
        (r"`+~?([^`]*)`+_*", r"\1"),
        (r"\s*\[[\w#*]+\]_", ""),
        (r"\s*\[\d+\](?!\w)", ""),
        (r"</?\w+[^<>]*>", " "),
        (r"\*\*([^*\s][^*]*)\*\*", r"\1"),
        (r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"\1"),
        (r"\(?<?https?://[^\s>)]+>?\)?", ""),
        (r"\\ ", ""),
        (r"\s*Read more in the User Guide\.?", ""),
    )
)


def docstrings(source: str) -> Iterator[str]:
    r"""Yield the docstrings of a source text in its own order: of the module, its classes, functions and methods.

    Those that a module hands to C functions as a plain string (``add_docstr(torch.abs, "...")``,
    ``add_newdoc("numpy", "arange", "...")``) count too. The source is parsed and never run.

    Args:
        source: The Python source.

    Yields:
        Each docstring, without its indentation.

    Raises:
        SyntaxError: If the source is not Python of this version.
        ValueError: If it holds null bytes.

    Example:
        >>> list(docstrings('def f():\n    "Do it."\nadd_newdoc("numpy", "g", "Do that.")'))
        ['Do it.', 'Do that.']
    """
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node):
                yield text
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue  # what is defined inside a function is nobody's interface
        elif isinstance(node, ast.Expr):
            if text := added_docstring(node.value):
                yield text
            continue
        elif not isinstance(node, (ast.If, ast.Try, ast.With)):
            continue
        pending.extend(reversed([*node.body, *getattr(node, "orelse", [])]))


def added_docstring(node: ast.expr) -> str | None:
    """Return the text of a call such as ``add_docstr(torch.abs, "...")``, or None for anything else."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    last = node.args[-1]
    if isinstance(last, ast.Call) and isinstance(last.func, ast.Attribute) and last.func.attr == "format":
        last = last.func.value
    if name.lstrip("_").startswith("add") and "doc" in name and isinstance(last, ast.Constant):
        return inspect.cleandoc(last.value) if isinstance(last.value, str) else None
    return None


def summary_and_prose(docstring: str) -> tuple[str, str]:
    r"""Split a docstring into its summary and the prose before its first section or code.

    Args:
        docstring: The docstring, without indentation.

    Returns:
        The summary (the first paragraph's first sentence, without its full stop) and the prose, each on one line and
        without markup. Either may be empty.

    Example:
        >>> summary_and_prose("Sort the rows.\n\nThe order of :class:`~a.Key` counts.\n\nArgs:\n    x: Rows.")
        ('Sort the rows', 'The order of Key counts.')
    """
    paragraphs = [clean(paragraph) for paragraph in prose_paragraphs(docstring)]
    while paragraphs and SIGNATURE.match(paragraphs[0]):
        paragraphs.pop(0)  # C functions carry their signature in their first line
    if not paragraphs:
        return "", ""
    summary, *rest = SENTENCE.split(paragraphs[0], maxsplit=1)
    return summary.rstrip(" ."), " ".join(part for part in [*rest, *paragraphs[1:]] if part)


def prose_paragraphs(docstring: str) -> Iterator[str]:
    """Yield the paragraphs before the first section or code, each with its line breaks."""
    lines = docstring.expandtabs().splitlines()
    paragraph: list[str] = []
    skipping = False
    listing = False
    for number, line in enumerate(lines):
        if not line.strip():
            if paragraph:
                yield "\n".join(paragraph)
            paragraph = []
            continue
        indented = line.startswith("  ")
        if skipping and indented:
            continue
        skipping = False
        if directive := DIRECTIVE.match(line):
            if directive[2] and directive[1] not in PASSED_OVER:
                break
            skipping = True
            continue
        if RULE.match(line):
            if number < 3:
                continue  # the rule over or under a title
            break
        if not re.search(r"\w", line):
            continue
        under = lines[number + 1] if number + 1 < len(lines) else ""
        headed = number > 1 and RULE.match(under) is not None
        if headed or any(pattern.match(line) for pattern in (SECTION, FIELD, CODE, ARGUMENT)):
            break
        bullet = re.match(r"^\s*([-*+•]|\(?\w{1,2}[.)])\s+", line)
        if indented and not paragraph and not bullet and not listing:
            break  # an indented block under a finished paragraph is code or a table
        listing = bool(bullet) or (listing and indented)
        if bullet:
            line = line[bullet.end() :]
        if line.rstrip().endswith("::"):
            paragraph.append(line)
            break
        paragraph.append(line)
    if paragraph:
        yield "\n".join(paragraph)


def clean(text: str) -> str:
    r"""Put a paragraph on one line, without markup, and without a last sentence that only introduces a listing.

    Example:
        >>> clean("See :func:`torch.abs` and ``x``\nor `this <http://a.b>`_. For example:")
        'See abs and x or this.'
    """
    text = " ".join(text.split())
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(text.split()))
    sentences = SENTENCE.split(text)
    if sentences[-1].endswith(":"):
        sentences.pop()
    return " ".join(sentences)


def reads_as_prose(text: str, min_words: int) -> bool:
    """Return whether a text has enough words and is mostly words, not symbols, formulas or templates."""
    words = text.split()
    plain = sum(bool(re.fullmatch(r"[\"'(\[]*[A-Za-z][A-Za-z'/-]*[\"')\].,;:!?]*", word)) for word in words)
    return len(words) >= min_words and plain >= 0.7 * len(words) and not re.search(r"\{\w*\}|\$|\\\w|%\(|::", text)


def boilerplate(documents: Iterable[str], occurrences: int) -> frozenset[str]:
    """Return the sentences that stand in this many documents or more: they say nothing about any one of them."""
    counts: dict[str, int] = {}
    for document in documents:
        for sentence in set(SENTENCE.split(document)):
            counts[sentence] = counts.get(sentence, 0) + 1
    return frozenset(sentence for sentence, count in counts.items() if count >= occurrences)


def without(document: str, sentences: frozenset[str]) -> str:
    """Return a document without some sentences."""
    return " ".join(sentence for sentence in SENTENCE.split(document) if sentence not in sentences)
