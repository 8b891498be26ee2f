from __future__ import annotations

import pytest

from lightning_distilbert.quickstart.docstrings import (
    boilerplate,
    clean,
    docstrings,
    reads_as_prose,
    summary_and_prose,
    without,
)

SOURCE = '''
"""The module."""
import missing_package_that_is_never_imported
add_docstr(torch.abs, r"""
abs(x) -> Tensor

The {x}.
""".format(**common))
not_a_docstring("add", "this one")
class A:
    """The class."""
    if True:
        def method(self):
            """The method."""
            def inner():
                """Not this one."""
try:
    async def f():
        "The coroutine."
except ImportError:
    pass
else:
    def g():
        """The alternative."""
'''


def test_docstrings_of_all_kinds_in_order_without_running_the_source() -> None:
    assert list(docstrings(SOURCE)) == [
        "The module.",
        "abs(x) -> Tensor\n\nThe {x}.",
        "The class.",
        "The method.",
        "The coroutine.",
        "The alternative.",
    ]


def test_a_file_that_is_no_python_raises() -> None:
    with pytest.raises(SyntaxError):
        list(docstrings("def (:"))


@pytest.mark.parametrize(
    "end",
    [
        "Args:\n    x: Rows.",
        "Arguments:\n    x: Rows.",
        "Parameters\n----------\nx : int",
        "Returns:\n    All.",
        "Return: all of it.",
        "Yields\n------\nRows",
        "Raises:\n    ValueError",
        "Example::\n\n    sort(x)",
        "Examples\n--------\n>>> 1",
        "Note: text.",
        "Notes\n-----\nText.",
        "See Also\n--------\nother",
        "References\n----------\n.. [1] A.",
        "Shape:\n    - Input",
        "Attributes:\n    x",
        "Any Heading\n-----------\nText.",
        ">>> sort(x)",
        "```python\nsort(x)\n```",
        ".. code-block:: python\n\n    sort(x)",
        ":param x: Rows.",
        "x (int, optional): Rows.",
        "max_rows: How many.",
        "x -- rows",
        "    sort(x)",
        "y = sort(x)",
        "+-----+\n| a   |",
    ],
)
def test_prose_ends_before_the_first_section_or_code(end: str) -> None:
    text = f"Sort the rows.\n\nThe order is kept.\nIt is stable.\n\n{end}\n\nMore text after it."
    assert summary_and_prose(text) == ("Sort the rows", "The order is kept. It is stable.")


def test_directives_that_are_not_prose_are_passed_over() -> None:
    text = "Sort the rows.\n\n.. versionadded:: 1.2\n   New.\n\nStable.\n\n.. math::\n\n    x\n\nFast."
    assert summary_and_prose(text) == ("Sort the rows", "Stable. Fast.")


def test_signature_and_title_lines_are_no_summary() -> None:
    assert summary_and_prose("abs(x: Tensor, *, out: Optional[Tensor]) -> Tensor\n\nTake |x| away. More.")[0] == (
        "Take |x| away"
    )
    assert summary_and_prose("=====\nSort things\n=====\n\nProse here.") == ("Sort things", "Prose here.")
    assert summary_and_prose("Draw random samples from U(N).\n\nProse.")[0] == "Draw random samples from U(N)"


def test_what_follows_the_first_sentence_is_prose() -> None:
    assert summary_and_prose("Sort rows, e.g. The first. Keep\nall.\n\nDone.") == (
        "Sort rows, e.g. The first",
        "Keep all. Done.",
    )


def test_lists_are_prose_without_their_bullets() -> None:
    text = "Sort the rows.\n\nThree ways:\n\n- by key\n  or none\n- 2nd\n\n1. first\n\nEnd."
    assert summary_and_prose(text)[1] == "by key or none 2nd first End."


def test_a_sentence_that_introduces_code_goes() -> None:
    assert summary_and_prose("Sort.\n\nIt is stable. Use it so::\n\n    sort(x)")[1] == "It is stable."


def test_an_empty_docstring_gives_nothing() -> None:
    assert summary_and_prose("Args:\n    x: Rows.") == ("", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":class:`~a.b.Key` and :py:func:`f`", "Key and f"),
        (":ref:`the guide <guide>` says", "the guide says"),
        ("``x`` is *very* **big** [1]_", "x is very big"),
        ("a * b * c and **kwargs", "a * b * c and **kwargs"),
        ("[`~models.Bert`] and [this](http://a.b/c)", "Bert and this"),
        ("`this <http://a.b>`_ page", "this page"),
        ("a <b>bold</b> word", "a bold word"),
        ("Fit it. Read more in the :ref:`User Guide <x>`.", "Fit it."),
        ("at https://a.b/c now", "at now"),
    ],
)
def test_markup_goes(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_formulas_templates_and_short_texts_are_no_prose() -> None:
    assert reads_as_prose("the rows are (sorted) first.", 5)
    assert not reads_as_prose("the rows are (sorted) first.", 6)
    assert not reads_as_prose("x_1 = y[0] + 3 for all", 3)
    assert not reads_as_prose("the {name} of the row", 3)
    assert not reads_as_prose(r"the \alpha of the row", 3)


def test_sentences_that_many_documents_share_are_found_and_removed() -> None:
    documents = [f"Row {number} differs. See the guide. See the guide." for number in range(3)]
    shared = boilerplate(documents, occurrences=3)
    assert shared == {"See the guide."}
    assert boilerplate(documents, occurrences=4) == frozenset()
    assert without(documents[1], shared) == "Row 1 differs."
