"""EM and F1 against SQuAD's official scripts: what evaluate-v2.0.py printed, its rules by hand, and torchmetrics."""

from __future__ import annotations

import collections
import random
import re
import string
import subprocess
import sys

import pytest
import torch
from torchmetrics.functional.text import squad

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.squad_scores import SquadScores, answer_scores, best_threshold, normalize_answer

WORDS = ["The", "tower", "of", "an", "Eiffel", "1889,", "a", "the", "(France)", "café", "東京", "it's", "\u2013"]


# -- the official rules, as evaluate-v1.1.py and evaluate-v2.0.py state them --


def official_normalize(text):
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    text = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)
    return " ".join(text.split())


def official_f1(gold, found, version):
    gold_tokens, found_tokens = official_normalize(gold).split(), official_normalize(found).split()
    if version == 2 and (len(gold_tokens) == 0 or len(found_tokens) == 0):
        return int(gold_tokens == found_tokens)
    num_same = sum((collections.Counter(gold_tokens) & collections.Counter(found_tokens)).values())
    if num_same == 0:
        return 0
    precision, recall = num_same / len(found_tokens), num_same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def official_scores(found, golds, version):
    if version == 2:
        golds = [gold for gold in golds if official_normalize(gold)] or [""]
    exact = max(int(official_normalize(gold) == official_normalize(found)) for gold in golds)
    return exact, max(official_f1(gold, found, version) for gold in golds)


def official_v2(questions, threshold):
    """Scores per question, all, HasAns and NoAns at a threshold, and the best threshold, with loops."""
    raw = [official_scores(q["answer"], q["truths"], 2) for q in questions]
    has = [bool(q["truths"]) for q in questions]
    kept = [
        [float(not has[i]) if q["doubt"] > threshold else raw[i][part] for i, q in enumerate(questions)]
        for part in (0, 1)
    ]
    result = {}
    for part, name in enumerate(("em", "f1")):
        result[name] = sum(kept[part]) / len(has)
        for group, wanted in (("has_answer", True), ("no_answer", False)):
            values = [value for value, here in zip(kept[part], has, strict=True) if here == wanted]
            result[f"{group}_{name}"] = sum(values) / len(values)
        current = best = has.count(False)
        best_at = None
        for i in sorted(range(len(questions)), key=lambda i: questions[i]["doubt"]):
            current += raw[i][part] if has[i] else (-1 if questions[i]["answer"] else 0)
            if current > best:
                best, best_at = current, questions[i]["doubt"]
        result[f"best_{name}"] = best / len(has)
        if name == "f1":
            result["threshold/no_answer"] = best_at
    return result


def make_questions(count=60, seed=0, impossible=0.4):
    """Questions of one to four windows, some without an answer."""
    draw = random.Random(seed)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 4))) + " word"

    questions = []
    for number in range(count):
        truths = [] if draw.random() < impossible else [text() for _ in range(draw.randint(1, 3))]
        windows = [
            {
                "score": draw.gauss(0, 2),
                "null": draw.gauss(0, 2),
                "answer": draw.choice(truths).upper() if truths and draw.random() < 0.5 else text(),
            }
            for _ in range(draw.randint(1, 4))
        ]
        best = max(windows, key=lambda window: window["score"])
        # float32, as the scores are kept
        scores = torch.tensor([[window["null"], window["score"]] for window in windows])
        doubt = float(scores[:, 0].min() - scores[:, 1].max())
        questions.append(
            {"number": number, "truths": truths, "windows": windows, "answer": best["answer"], "doubt": doubt}
        )
    return questions


def feed(metric, questions, batch=7, seed=1):
    """Give the windows in any order, in batches."""
    rows = [(q["number"], w["score"], w["null"], w["answer"], q["truths"]) for q in questions for w in q["windows"]]
    random.Random(seed).shuffle(rows)
    for start in range(0, len(rows), batch):
        numbers, scores, nulls, answers, truths = zip(*rows[start : start + batch], strict=True)
        metric.update(torch.tensor(numbers), torch.tensor(scores), torch.tensor(nulls), answers, truths)
    return metric


def values(results):
    return {name: float(value) for name, value in results.items()}


@pytest.mark.parametrize("version", [1, 2])
def test_each_answer_counts_as_in_the_official_script(version):
    draw = random.Random(0)
    texts = ["", "the", "The tower!", "tower"]
    texts += [" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(60)]
    for answer in texts:
        assert normalize_answer(answer) == official_normalize(answer)
        for _ in range(5):
            truths = draw.choices(texts, k=draw.randint(1, 3))
            expected = official_scores(answer, truths, version)
            assert answer_scores(answer, truths, no_answer=version == 2) == pytest.approx(expected)
    # where the two versions differ: answers without a word
    assert answer_scores("a", ["the"], no_answer=False) == (1.0, 0.0)
    assert answer_scores("a", ["the"], no_answer=True) == (1.0, 1.0)
    assert answer_scores("tower", ["the", "tower of"], no_answer=True) == pytest.approx((0.0, 2 / 3))


# -- what evaluate-v2.0.py printed (github.com/pavanchhatpar/question-generation, f00b7f3, a copy of the original) --

# the answer, the true answers, and the probability that there is none
PRINTED = [
    ("the red kite", ["Red kite", "a kite"], 0.02),  # the first word is an article
    ("Kite, red", ["red kite"], 0.31),  # the same words in another order
    ("kite red kite", ["red kite"], 0.11),  # one word twice
    ("an old mill by the river", ["mill", "the old mill", "river mill"], 0.27),  # the best of three
    ("A.N. Morrow", ["Morrow"], 0.44),  # without its dots it begins with an article
    ("the-bridge", ["bridge"], 0.52),  # without its hyphen it has none
    ("seventy\u2013two", ["seventy two", "seventy\u2013two"], 0.05),  # a dash that is no ASCII punctuation
    ("forty\u00a0boats", ["forty boats"], 0.08),  # a space that does not break
    ("Thé vert", ["thé VERT"], 0.35),  # no article
    ("cafe\u0301", ["café"], 0.13),  # the same to the eye
    ("a\u0301 la", ["la"], 0.58),  # a word boundary stands before the accent
    ("İzmir", ["izmir"], 0.61),  # two characters in small letters
    ("ΟΔΟΣ", ["οδος", "οδός"], 0.16),  # of the two small sigmas the final one
    ("STRASSE", ["Straße"], 0.47),
    ("東京 tower", ["東京", "東京 tower."], 0.03),
    ("$1,200", ["1200", "1,200 dollars"], 0.21),
    ("", ["nine geese"], 0.97),  # left out by itself
    ("...", ["nine geese"], 0.66),
    ("the", ["a"], 0.39),  # neither has a word
    ("", ["the", "an"], 0.83),  # the true answers have none
    ("granite", ["the", "grey granite"], 0.19),  # one of them has none
    ("an", ["the", "grey granite"], 0.63),  # so that the other alone counts
    ("wrong quay", ["north harbour"], 0.73),
    ("a lantern", [], 0.70),  # of the following none has an answer
    ("north harbour", [], 0.99),
    ("", [], 0.91),
    ("salt, and pepper", [], 0.24),
    ("", [], 0.07),
    ("two copper coins", [], 0.88),
]
PLAIN = {"exact": 41.37931034482759, "f1": 54.48275862068966, "HasAns_exact": 43.47826086956522, "HasAns_f1": 60.0}
PLAIN |= {"NoAns_exact": 33.333333333333336, "NoAns_f1": 33.333333333333336}
HALF = {"exact": 48.275862068965516, "f1": 59.08045977011494}
HALF |= {"HasAns_exact": 39.130434782608695, "HasAns_f1": 52.7536231884058}
HALF |= {"NoAns_exact": 83.33333333333333, "NoAns_f1": 83.33333333333333}
BEST = {"best_exact": 48.275862068965516, "best_exact_thresh": 0.44}
BEST |= {"best_f1": 61.37931034482759, "best_f1_thresh": 0.58}
OURS = {"exact": "em", "f1": "f1", "HasAns": "has_answer", "NoAns": "no_answer", "best": "best"}


def as_printed(questions, threshold=None):
    """Return our scores under the official names, in percent; without a threshold, without probabilities too."""
    answers, truths, doubts = zip(*questions, strict=True)
    count = len(answers)
    metric = SquadScores(no_answer=True)
    metric.thresholds = {} if threshold is None else {"no_answer": threshold}
    doubt = torch.zeros(count) if threshold is None else torch.tensor(doubts)
    metric.update(torch.arange(count), torch.zeros(count), doubt, answers, truths)
    found = values(metric.compute())
    exact = torch.tensor([answer_scores(*pair, no_answer=True)[0] for pair in zip(answers, truths, strict=True)])
    thresholds = {
        "best_exact_thresh": float(best_threshold(doubt, exact, torch.tensor([bool(truth) for truth in truths]))[1]),
        "best_f1_thresh": found.pop("threshold/no_answer"),
    }
    names = {
        "_".join(OURS[part] for part in name.split("_")): name for name in PLAIN.keys() | {"best_exact", "best_f1"}
    }
    return {names[name]: 100 * value for name, value in found.items()} | thresholds


@pytest.mark.parametrize(("threshold", "printed"), [(None, PLAIN), (1.0, PLAIN | BEST), (0.5, HALF | BEST)])
def test_version_two_is_what_the_official_script_printed(threshold, printed):
    """Without a file of probabilities, with one, and with --na-prob-thresh 0.5."""
    found = as_printed(PRINTED, threshold)
    assert {name: found[name] for name in printed} == pytest.approx(printed, rel=1e-6)


def test_equal_probabilities_as_the_official_script_printed_them():
    tied = [(answer, truths, round(doubt, 1)) for answer, truths, doubt in PRINTED]
    printed = PLAIN | BEST | {"best_exact_thresh": 0.4, "best_f1_thresh": 0.6}
    assert as_printed(tied, 1.0) == pytest.approx(printed, rel=1e-6)


def test_where_the_official_best_is_of_no_threshold_ours_is_of_one():
    """It parts equal probabilities by the order of the questions: its f1 at its own best threshold is a lower one."""
    tied = [(answer, truths, round(3 * doubt) / 4) for answer, truths, doubt in PRINTED]
    printed = {"f1": 61.37931034482758, "best_f1": 64.82758620689657, "best_f1_thresh": 0.5}
    found = as_printed(tied, printed["best_f1_thresh"])
    assert found["f1"] == pytest.approx(printed["f1"])
    assert found["best_f1_thresh"] == printed["best_f1_thresh"]
    assert found["best_f1"] == pytest.approx(printed["f1"])
    assert found["best_f1"] < printed["best_f1"]
    # and it takes an answer without a word for one in its best, and for none in its scores
    wordless = [("the", [], 0.2), ("mill", ["mill"], 0.4)]
    printed = {"exact": 100.0, "best_exact": 50.0, "best_exact_thresh": 0.0}
    found = as_printed(wordless, 1.0)
    assert found["exact"] == printed["exact"] == found["best_exact"]
    assert found["best_exact_thresh"] == pytest.approx(0.4)


def test_a_missing_truth_is_an_error_in_version_one_and_no_answer_in_version_two():
    with pytest.raises(DistillationError, match="no_answer=True"):
        answer_scores("tower", [])
    assert answer_scores("tower", [], no_answer=True) == (0.0, 0.0)


def test_version_one_equals_torchmetrics():
    questions = make_questions(impossible=0.0)
    found = values(feed(SquadScores(), questions).compute())
    predictions = [{"prediction_text": q["answer"], "id": str(q["number"])} for q in questions]
    targets = [
        {"answers": {"text": q["truths"], "answer_start": [0] * len(q["truths"])}, "id": str(q["number"])}
        for q in questions
    ]
    expected = squad(predictions, targets)
    assert found == pytest.approx({"em": float(expected["exact_match"]) / 100, "f1": float(expected["f1"]) / 100})
    assert 0.1 < found["em"] < found["f1"] < 0.9


@pytest.mark.parametrize("threshold", [None, 0.0, -1.5, 2.0, 100.0, -100.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_version_two_equals_the_official_script(threshold, seed):
    questions = make_questions(seed=seed)
    metric = feed(SquadScores(no_answer=True), questions)
    if threshold is not None:
        metric.thresholds = {"no_answer": threshold}
    expected = official_v2(questions, threshold or 0.0)
    assert values(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_the_chosen_threshold_gives_the_best_score():
    questions = make_questions()
    metric = feed(SquadScores(no_answer=True), questions)
    first = values(metric.compute())
    assert first["f1"] < first["best_f1"]
    metric.thresholds = {"no_answer": first["threshold/no_answer"]}
    metric._computed = None
    second = values(metric.compute())
    assert second["f1"] == pytest.approx(first["best_f1"])
    assert second["threshold/no_answer"] == first["threshold/no_answer"]


def test_order_batches_and_repeated_windows_change_nothing():
    questions = make_questions()
    expected = values(feed(SquadScores(no_answer=True), questions).compute())
    for batch, seed in ((1, 2), (1000, 3)):
        assert values(feed(SquadScores(no_answer=True), questions, batch, seed).compute()) == pytest.approx(expected)
    twice = feed(feed(SquadScores(no_answer=True), questions), questions[:11])
    assert values(twice.compute()) == pytest.approx(expected)


def test_questions_without_a_label_and_impossible_ones_of_version_one_are_left_out():
    questions = make_questions()
    metric = feed(SquadScores(), questions)
    metric.update(torch.tensor([500]), torch.zeros(1), torch.zeros(1), ["x"], [None])
    possible = [q for q in questions if q["truths"]]
    expected = [official_scores(q["answer"], q["truths"], 1) for q in possible]
    assert len(possible) < len(questions)
    em, f1 = (sum(part) / len(possible) for part in zip(*expected, strict=True))
    assert values(metric.compute()) == pytest.approx({"em": em, "f1": f1}, rel=1e-5)
    assert metric.per_example["example"].tolist() == [q["number"] for q in possible]
    assert metric.per_example["f1"].tolist() == pytest.approx([f1 for _, f1 in expected])


def test_a_question_without_a_span_is_left_unanswered_and_does_not_choose_the_threshold():
    metric = SquadScores(no_answer=True)
    never = float("-inf")
    metric.update(
        torch.tensor([0, 1, 2]), torch.tensor([never, 1.0, 1.0]), torch.tensor([0.0, 3.0, 0.0]), ["", "x", "y"],
        [[], ["x"], ["z"]],
    )  # fmt: skip
    found = values(metric.compute())
    assert found["threshold/no_answer"] == 2.0
    assert found["best_em"] == pytest.approx(2 / 3)
    assert found["em"] == pytest.approx(1 / 3)  # at 0 the second question is left out too


def test_groups_that_are_empty_are_left_out_and_nothing_at_all_is_nan():
    metric = SquadScores(no_answer=True)
    metric.update(torch.tensor([0]), torch.ones(1), torch.zeros(1), ["x"], [["x"]])
    assert not [name for name in metric.compute() if name.startswith("no_answer")]
    metric.reset()
    metric.update(torch.tensor([0]), torch.ones(1), torch.zeros(1), ["x"], [[]])
    assert not [name for name in metric.compute() if name.startswith("has_answer")]
    empty = SquadScores(no_answer=True)
    empty.update(torch.tensor([0]), torch.ones(1), torch.zeros(1), ["x"], [None])
    found = empty.compute()
    assert set(found) == {"em", "f1"}
    assert all(value.isnan() for value in found.values())


def test_where_all_is_best_left_out_the_threshold_is_below_all_doubts():
    doubt = torch.tensor([1.0, -3.0, 2.0])
    best, threshold = best_threshold(doubt, torch.zeros(3), torch.tensor([False, False, True]))
    assert best == pytest.approx(2 / 3)
    assert threshold < -3.0
    assert threshold.isfinite()


def test_equal_doubts_are_not_parted():
    doubt = torch.tensor([0.0, 0.0, 5.0])
    # answering one of the first two alone would be best, and no threshold does that
    best, threshold = best_threshold(doubt, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
    assert best == pytest.approx(2 / 3)
    assert threshold == 5.0


def test_texts_and_windows_have_to_be_as_many():
    with pytest.raises(DistillationError, match=r"2 examples, 2 and 2 scores, 1 answers and 2 true ones"):
        SquadScores().update(torch.zeros(2).long(), torch.zeros(2), torch.zeros(2), ["x"], [["x"], ["x"]])


def test_per_example_is_known_only_after_compute():
    metric = SquadScores()
    with pytest.raises(DistillationError, match="after compute"):
        metric.per_example  # noqa: B018
    feed(metric, make_questions(impossible=0.0)).compute()
    assert len(metric.per_example["em"]) == 60
    metric.reset()
    with pytest.raises(DistillationError, match="after compute"):
        metric.per_example  # noqa: B018


WORKER = """
import sys, torch, torch.distributed as dist
from lightning_distilbert.squad_scores import SquadScores
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
scores, nulls = torch.randn(2, 31, generator=generator)
examples = torch.arange(31) // 3
metric = SquadScores(no_answer=True)
mine = range(rank, 31, 2)
if sys.argv[3] == "uneven":
    mine = range(31) if rank == 0 else range(0)
for row in mine:
    truths = [["word"]] if examples[row] % 2 else [[]]
    metric.update(examples[[row]], scores[[row]], nulls[[row]], ["word" if row % 3 else "other"], truths)
print(" ".join(f"{name}={value.item():.7f}" for name, value in metric.compute().items()))
"""


@pytest.mark.parametrize("share", ["alternate", "uneven"])
def test_windows_of_one_question_on_two_processes(tmp_path, share):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), share], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=200)[0].strip().splitlines()[-1] for worker in workers]
    assert outputs[0] == outputs[1]
    generator = torch.Generator().manual_seed(0)
    scores, nulls = torch.randn(2, 31, generator=generator)
    metric = SquadScores(no_answer=True)
    answers = ["word" if row % 3 else "other" for row in range(31)]
    truths = [["word"] if row // 3 % 2 else [] for row in range(31)]
    metric.update(torch.arange(31) // 3, scores, nulls, answers, truths)
    assert outputs[0] == " ".join(f"{name}={value.item():.7f}" for name, value in metric.compute().items())
