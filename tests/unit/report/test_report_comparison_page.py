from __future__ import annotations

import re
from html.parser import HTMLParser

from lightning_distilbert.report.comparison_page import figures, to_html
from tests.comparisons import comparison, measured

VOID = {"meta", "line", "rect", "circle", "path", "br"}


class Checker(HTMLParser):
    """Notes which tags are open, what is loaded, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID or tag in ("circle", "rect", "path"):
            self.open.append(tag)
        self.loads += [(tag, value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_page_is_whole_and_loads_nothing():
    page = to_html(comparison())
    assert check(page).loads == []
    assert not re.search(r"https?:|@import|url\(|<script", page)
    assert page.count("<svg") == 4
    assert "prefers-color-scheme: dark" in page
    assert "$" not in page


def test_page_says_how_it_was_measured():
    text = check(to_html(comparison())).text
    told = ["Some Processor", "2 of 2", "torch 2.13.0", "2026-05-01", "872 texts of dev.tsv", "compare --models a=b"]
    for part in [*told, "int8 reads 64 tokens at most", "0.870 [0.850, 0.890]", "4.00 / 5.33 / 8.00"]:
        assert part in text


def test_names_are_text_and_no_markup():
    page = to_html(comparison(measured("<script>alert(1)</script>", 0.9), command="a & b > c"))
    check(page)
    assert "<script" not in page
    assert "<code>a &amp; b &gt; c</code>" in page


def test_each_colour_is_defined_for_light_and_dark():
    page = to_html(comparison())
    for name in {*re.findall(r"var\((--\w+)\)", page)}:
        assert len(re.findall(rf"{name}: #", page)) == 2


def test_model_keeps_its_colour_in_tables_and_pictures():
    page = to_html(comparison())
    for row in re.findall(r"<tr><td.*?</tr>", page):
        index = ["teacher", "student", "int8"].index(re.search(r"</span>(\w+)<", row)[1])
        assert f"key c{index}" in row


def test_single_model_has_no_picture_of_differences():
    found = figures(comparison(measured("teacher", 0.9)))
    assert len(found) == 3
    assert "Difference to" not in "".join(found)


def test_model_that_does_not_read_the_main_length_is_left_out_of_that_picture():
    made = comparison(measured("teacher", 0.9), measured("short", 0.8, longest=16))
    speeds = next(part for part in figures(made) if "Score and latency" in part)
    assert "teacher: 0.900" in speeds
    assert "short: 0.800" not in speeds
