"""BLEU and chrF over batches are those of the whole corpus."""

from __future__ import annotations

import copy
import pickle

import pytest
import sacrebleu
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.metrics_translation import TranslationScores

FOUND = ["Ein Hund läuft.", "Zwei Männer sitzen auf einer Bank im Park.", "", "Das ist ein Haus.", "Ja"]
WANTED = ["Ein Hund rennt.", "Zwei Männer sitzen im Park auf einer Bank.", "Nichts.", "Das ist ein Haus.", "Ja, gut."]


def reference(found: list[str], wanted: list[str]) -> dict[str, float]:
    return {
        "bleu": sacrebleu.corpus_bleu(found, [wanted]).score,
        "chrf": sacrebleu.corpus_chrf(found, [wanted]).score,
    }


@pytest.mark.parametrize("size", [1, 2, 5])
def test_scores_are_sacrebleu_s_whatever_the_batches(size: int):
    scores = TranslationScores()
    for start in range(0, len(FOUND), size):
        scores.update(FOUND[start : start + size], WANTED[start : start + size])
    wanted = reference(FOUND, WANTED)
    assert 0 < wanted["bleu"] < 100
    assert {name: value.item() for name, value in scores.compute().items()} == pytest.approx(wanted, rel=1e-5)


def test_counts_of_processes_add_up():
    parts = [TranslationScores(), TranslationScores()]
    parts[0].update(FOUND[:2], WANTED[:2])
    parts[1].update(FOUND[2:], WANTED[2:])
    total = TranslationScores()
    for name, reduce in total._reductions.items():  # what torchmetrics does after it has gathered them
        setattr(total, name, reduce(torch.stack([getattr(part, name) for part in parts])))
    total._update_count = 1
    found = {name: value.item() for name, value in total.compute().items()}
    assert found == pytest.approx(reference(FOUND, WANTED), rel=1e-5)


def test_nothing_seen_is_no_score_and_reset_forgets():
    scores = TranslationScores()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert scores.compute() == {}
    scores.update(FOUND, WANTED)
    scores.compute()
    scores.reset()
    scores.update(["Ja"], ["Ja"])
    assert scores.compute()["chrf"].item() == pytest.approx(100.0)
    scores.update([], [])
    assert scores.sentences == 1


def test_signatures_are_kept_and_survive_copies():
    scores = TranslationScores()
    for one in (scores, copy.deepcopy(scores), pickle.loads(pickle.dumps(scores))):
        assert one.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
        assert one.signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(DistillationError, match="2 translations and 1 references"):
        TranslationScores().update(["a", "b"], ["a"])
