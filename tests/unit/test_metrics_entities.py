"""Entity scores against the CoNLL script's algorithm and seqeval, over batches, windows and processes."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys

import pytest
import seqeval.metrics
import torch

from lightning_distilbert.data.tags import SCHEMES, labels_for
from lightning_distilbert.errors import DistillationError, MissingExtraError
from lightning_distilbert.metrics_entities import EntityScores

LABELS = ["I-Y", "O", "B-X", "I-X", "B-Y"]


def conlleval(gold, predicted):
    """Count chunks as the CoNLL-2000 Perl script does (startOfChunk, endOfChunk and its main loop)."""

    def ends(before, now):
        (letter, kind), (tag, other) = before, now
        return letter in "ES" or (letter in "BI" and (tag in "BSO" or kind != other))

    def starts(before, now):
        (letter, kind), (tag, other) = before, now
        return tag in "BS" or (tag in "EI" and (letter in "ESO" or kind != other))

    correct = found = wanted = 0
    for gold_row, predicted_row in zip(gold, predicted, strict=True):
        inside, last, last_guess = False, ("O", ""), ("O", "")
        for tag, guess in [*zip(gold_row, predicted_row, strict=True), ("O", "O")]:
            now, now_guess = (tuple(name.partition("-")[::2]) for name in (tag, guess))
            end, end_guess = ends(last, now), ends(last_guess, now_guess)
            if inside and end and end_guess and last_guess[1] == last[1]:
                inside, correct = False, correct + 1
            elif inside and (end != end_guess or now[1] != now_guess[1]):
                inside = False
            start, start_guess = starts(last, now), starts(last_guess, now_guess)
            inside = inside or (start and start_guess and now[1] == now_guess[1])
            wanted, found = wanted + start, found + start_guess
            last, last_guess = now, now_guess
        correct += inside
    precision, recall = correct / max(1, found), correct / max(1, wanted)
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def random_rows(labels, seed=0, rows=60):
    generator = random.Random(seed)
    gold = [generator.choices(labels, k=generator.randint(1, 9)) for _ in range(rows)]
    # right two times out of three, so that there is something to count
    guess = [[tag if generator.random() < 0.67 else generator.choice(labels) for tag in row] for row in gold]
    return gold, guess


def flat(gold, guess, labels):
    """Return the rows as `update` takes them: predicted, target, sentence, word."""
    words = [
        (labels.index(theirs), labels.index(ours), number, place)
        for number, (row, other) in enumerate(zip(gold, guess, strict=True))
        for place, (ours, theirs) in enumerate(zip(row, other, strict=True))
    ]
    return torch.tensor(words).T


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_the_conll_script_and_of_seqeval_for_broken_tags_too(scheme, seed):
    labels = labels_for(["X", "Y"], scheme)
    gold, guess = random_rows(labels, seed)
    scores = EntityScores(labels)
    scores.update(*flat(gold, guess, labels))
    found = scores.compute()
    # neither knows BILOU, which is IOBES with other letters
    gold, guess = (
        [[tag.replace("L-", "E-").replace("U-", "S-") for tag in row] for row in rows] for rows in (gold, guess)
    )
    precision, recall, f1 = conlleval(gold, guess)
    assert 0.1 < f1 < 0.9
    assert found["f1"].item() == pytest.approx(seqeval.metrics.f1_score(gold, guess))
    for name, value in {"precision": precision, "recall": recall, "f1": f1}.items():
        assert found[name].item() == pytest.approx(value)
    pairs = [pair for row in zip(gold, guess, strict=True) for pair in zip(*row, strict=True)]
    assert found["accuracy"].item() == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_neither_batches_nor_windows_nor_repeated_rows_change_a_score():
    gold, guess = random_rows(LABELS)
    words = flat(gold, guess, LABELS)
    whole = EntityScores(LABELS)
    whole.update(*words)
    order = torch.randperm(words.shape[1])
    parts = EntityScores(LABELS)
    for part in (*words[:, order].split(7, dim=1), words[:, :20]):
        parts.update(*part)
    assert parts.compute() == whole.compute()
    assert parts.per_type == whole.per_type


def test_exact_counts_sentences_without_any_mistake():
    scores = EntityScores(["O", "B-X", "I-X"])
    # right; right though the tags differ (I-X that nothing begins); one too many; one cut off
    gold = [[1, 2], [1, 2], [0, 0], [1, 2]]
    guess = [[1, 2], [2, 2], [0, 1], [1, 0]]
    for number, (ours, theirs) in enumerate(zip(gold, guess, strict=True)):
        scores.update(torch.tensor(theirs), torch.tensor(ours), torch.full((2,), number), torch.arange(2))
    found = scores.compute()
    assert found["exact"] == 0.5
    assert found["accuracy"] == 5 / 8


def test_scores_of_each_type_are_kept():
    scores = EntityScores(LABELS)
    gold, guess = random_rows(LABELS)
    with pytest.raises(DistillationError, match="known only after compute"):
        scores.per_type  # noqa: B018
    scores.update(*flat(gold, guess, LABELS))
    scores.compute()
    report = seqeval.metrics.classification_report(gold, guess, output_dict=True)
    assert sorted(scores.per_type) == ["X", "Y"]
    for kind, row in scores.per_type.items():
        assert row == {
            "precision": report[kind]["precision"], "recall": report[kind]["recall"],
            "f1": report[kind]["f1-score"], "support": report[kind]["support"],
        }  # fmt: skip
    kept = scores.per_type
    scores.reset()  # as the module does right after
    assert scores.per_type == kept


def test_words_without_a_label_do_not_count_and_nothing_at_all_is_zero():
    scores = EntityScores(["O", "B-X"])
    none = torch.zeros(0, dtype=torch.long)
    scores.update(none, none, none, none)
    assert set(map(float, scores.compute().values())) == {0.0}
    scores.update(torch.tensor([1, 1, 0]), torch.tensor([-100, 1, 0]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    assert {name: float(value) for name, value in scores.compute().items()} == dict.fromkeys(scores.compute(), 1.0)
    scores.reset()
    scores.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))  # no entity anywhere
    found = scores.compute()
    assert (found["f1"], found["accuracy"], found["exact"]) == (0, 1, 1)


def test_sentences_without_a_number_are_told_apart_over_calls():
    gold, guess = random_rows(LABELS, rows=12)
    numbered, plain = EntityScores(LABELS), EntityScores(LABELS)
    for start in range(0, 12, 5):
        predicted, target, sentence, word = flat(gold[start : start + 5], guess[start : start + 5], LABELS)
        plain.update(predicted, target, sentence)
        numbered.update(predicted, target, sentence + start, word)
    assert plain.compute() == numbered.compute()
    assert len(plain.tags()[0]) == 12


def test_what_does_not_fit_is_refused(monkeypatch):
    one, two = torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with pytest.raises(DistillationError, match="labels have no names"):
        EntityScores().update(one, one, one, one)
    with pytest.raises(DistillationError, match=r"shapes \[\(1,\), \(2,\)\]"):
        EntityScores(LABELS).update(one, two, one, one)
    scores = EntityScores(["O", "PER"])
    scores.update(one, one, one, one)
    with pytest.raises(DistillationError, match="'PER' is not known"):
        scores.compute()
    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[ner\]"):
        scores.compute()


SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from lightning_distilbert.metrics_entities import EntityScores
rank, store, labels, words = int(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
numbered, plain = EntityScores(labels), EntityScores(labels)
words = torch.tensor(words).T
if rank == 0:  # the other process sees none
    plain.update(*words[:3])
numbered.update(*words[:, rank::2])
numbered.update(*words[:, :3])
found = [{name: value.item() for name, value in scores.compute().items()} for scores in (numbered, plain)]
if rank == 0:
    print(json.dumps([found, numbered.per_type]))
"""


def test_two_processes_give_the_scores_of_one(tmp_path):
    gold, guess = random_rows(LABELS)
    words = flat(gold, guess, LABELS)
    whole = EntityScores(LABELS)
    whole.update(*words)
    wanted = {name: value.item() for name, value in whole.compute().items()}
    arguments = [str(tmp_path / "store"), json.dumps(LABELS), json.dumps(words.T.tolist())]
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found, per_type = json.loads(outputs[0])
    assert found == [wanted, wanted]
    assert per_type == whole.per_type


def test_every_pair_of_short_rows_is_scored_as_the_script_does():
    labels = ["O", "B-X", "I-X", "I-Y"]
    rows = [list(row) for row in itertools.product(labels, repeat=3)]
    pairs = list(itertools.product(rows, rows))[::17]
    gold, guess = (list(part) for part in zip(*pairs, strict=True))
    scores = EntityScores(labels)
    scores.update(*flat(gold, guess, labels))
    assert scores.compute()["f1"].item() == pytest.approx(conlleval(gold, guess)[2])
