from __future__ import annotations

import pytest

from lightning_distilbert.report.comparison_tables import facts, number, tables, to_markdown, to_text, units
from tests.comparisons import comparison, measured


def test_tables_hold_what_was_measured():
    scores, costs, latency = (table for _, table in tables(comparison()))
    assert scores.columns == ["model", "format", "accuracy [95 %]", "against teacher [95 %]", "p", "kept"]
    assert scores.rows == [
        ["teacher", "transformers", "0.900 [0.880, 0.920]", "-", "-", "100.0%"],
        ["student", "transformers", "0.880 [0.860, 0.900]", "-0.020 [-0.031, -0.009]", "0.002", "97.8%"],
        ["int8", "onnx-int8", "0.870 [0.850, 0.890]", "-0.030 [-0.050, +0.010]", "0.250", "96.7%"],
    ]
    assert costs.columns[-2:] == ["ms, 1 x 64", "texts/s, 32 x 64"]
    assert costs.rows[0] == ["teacher", "22.7 M", "90.9", "512", "4.25", "16.0", "40.0"]
    assert costs.rows[2] == ["int8", "22.7 M", "17.0", "-", "-", "16.0", "-"]
    assert latency.columns == ["model", "16 tokens", "64 tokens", "128 tokens"]
    assert latency.rows[2] == ["int8", "4.00 / 5.33 / 8.00", "16.0 / 21.3 / 32.0", "-"]


def test_lower_is_better_is_said_and_a_score_without_share_is_a_dash():
    found = comparison(measured("a", 0.5, retention=None), metric="loss", mode="min")
    scores = tables(found)[0][1]
    assert scores.columns[2] == "loss [95 %], lower is better"
    assert scores.rows[0][-1] == "-"


def test_how_it_was_measured_is_told():
    told = dict(facts(comparison()))
    assert told["rows"] == "872 texts of dev.tsv (validation)"
    assert told["threads"] == "2 of 2"
    assert told["processor"] == "Some Processor"
    assert told["versions"] == "lightning_distilbert 0.1.0, torch 2.13.0"
    assert told["command"] == "lightning-distilbert compare --models a=b"
    assert "cold starts (3 of each)" in told["timed"]
    untold = dict(facts(comparison(command=None, starts=0)))
    assert "command" not in untold
    assert "cold" not in untold["timed"]


@pytest.mark.parametrize("write", [to_text, to_markdown])
def test_both_texts_hold_tables_facts_and_notes(write):
    text = write(comparison())
    for part in ("0.880 [0.860, 0.900]", "16.0 / 21.3 / 32.0", "Some Processor", "Note: int8 reads 64 tokens at most."):
        assert part in text


def test_markdown_has_no_heading_of_its_own_and_escapes_bars():
    text = to_markdown(comparison(measured("a|b", 0.9)))
    assert "#" not in text
    assert r"| a\|b |" in text


def test_small_differences_have_no_negative_zero():
    assert (number(-0.0001, sign=True), number(0.0001, sign=True), number(-0.0001)) == ("0.000", "+0.000", "0.000")


def test_pairs_are_not_called_texts():
    assert (units(comparison()), units(comparison(task="QuestionAnswering"))) == ("texts", "pairs")
