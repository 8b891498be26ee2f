from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from transformers import BertConfig, BertForQuestionAnswering, RobertaConfig, RobertaForQuestionAnswering

from lightning_distilbert import DistillationError, DistillationModule, QuestionAnswering
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.windows import ByExample, encode_windows, pad_windows
from lightning_distilbert.tasks.question_answering import Candidate, split_rows, trim
from tests.tokenizers_of_kinds import make_tokenizers

TOKENIZERS = make_tokenizers()
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS = [
    "the tower was built in the city",
    "  the caf\u00e9 in T\u014dky\u014d, cafe\u0301 \U0001f389 \u6771\u4eac ",
    "the city of the tower " * 20,
    "x",
]


def make_module(name="bert-uncased", seed=0, **task):
    tokenizer = TOKENIZERS[name]
    torch.manual_seed(seed)
    bert = name.startswith(("bert", "mpnet"))
    config = (BertConfig if bert else RobertaConfig)(
        vocab_size=len(tokenizer), max_position_embeddings=80, initializer_range=0.5, **SIZES,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = (BertForQuestionAnswering if bert else RobertaForQuestionAnswering)(config)
    module = DistillationModule(QuestionAnswering(**{"doc_stride": 8, **task}), student=model)
    module._tokenizer = tokenizer
    return module


def make_batch(questions, contexts, name="bert-uncased", length=64, stride=8):
    windows = encode_windows(TOKENIZERS[name], questions, contexts, length, stride)
    return pad_windows(windows[list(range(len(windows)))], Padding.of(TOKENIZERS[name]))


def make_outputs(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start, end = 2 * torch.randn(2, *batch["input_ids"].shape, generator=generator)
    return {"start_logits": start, "end_logits": end}


def test_the_loss_is_over_the_context_and_the_first_token():
    batch = make_batch(["who is", "what"], TEXTS[:2])
    batch["start_positions"], batch["end_positions"] = torch.tensor([5, 0]), torch.tensor([7, 0])
    outputs = make_outputs(batch)
    costs = []
    for row in (0, 1):
        allowed = np.flatnonzero(batch["span_mask"][row].numpy())
        for logits, places in (("start_logits", "start_positions"), ("end_logits", "end_positions")):
            logs = log_softmax(outputs[logits][row].double().numpy()[allowed])
            costs.append(-logs[list(allowed).index(int(batch[places][row]))])
    task = QuestionAnswering()
    assert task.loss(outputs, batch).item() == pytest.approx(np.mean(costs), rel=1e-5)
    batch["start_positions"][1] = batch["end_positions"][1] = -100
    assert task.loss(outputs, batch).item() == pytest.approx(np.mean(costs[:2]), rel=1e-5)
    del batch["start_positions"]
    assert task.loss(outputs, batch) is None


def test_a_batch_of_another_making_is_masked_by_its_token_types():
    batch = make_batch(["who is"], TEXTS[:1])
    batch["start_positions"], batch["end_positions"] = torch.tensor([5]), torch.tensor([7])
    outputs = make_outputs(batch)
    expected = QuestionAnswering().loss(outputs, batch)
    last = int(batch["attention_mask"].sum()) - 1
    outputs["start_logits"][0, last] = outputs["end_logits"][0, last] = -1e9  # the separator has the context's type
    del batch["span_mask"]
    torch.testing.assert_close(QuestionAnswering().loss(outputs, batch), expected)
    outputs["start_logits"][0, 1:4] = 50.0  # the question
    torch.testing.assert_close(QuestionAnswering().loss(outputs, batch), expected)


def answer_by_hand(outputs, batch, row, longest):
    """The best span of a window by a loop, and its probability."""
    start, end = (outputs[f"{side}_logits"][row].double().numpy() for side in ("start", "end"))
    allowed = np.flatnonzero(batch["span_mask"][row].numpy())
    p, q = softmax(start[allowed]), softmax(end[allowed])
    best = (-math.inf,)
    for a, i in enumerate(allowed[1:], 1):
        for b, j in enumerate(allowed[1:], 1):
            if i <= j < i + longest and start[i] + end[j] > best[0]:
                best = (start[i] + end[j], p[a] * q[b], int(i), int(j))
    return best, start[allowed[0]] + end[allowed[0]], p[0] * q[0]


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_candidates_are_the_best_spans_of_windows(longest):
    batch = make_batch(["who is"] * 4, TEXTS)
    outputs = make_outputs(batch)
    found = QuestionAnswering(max_answer_length=longest).candidates(outputs, batch)
    assert len(found) == len(batch["input_ids"]) > 4
    for row, candidate in enumerate(found):
        (score, probability, first, last), null, null_probability = answer_by_hand(outputs, batch, row, longest)
        assert candidate.score == pytest.approx(score, rel=1e-5)
        assert candidate.null == pytest.approx(null, rel=1e-5)
        assert candidate.probability == pytest.approx(probability, rel=1e-4)
        assert candidate.null_probability == pytest.approx(null_probability, rel=1e-4)
        offsets = batch["offsets"][row]
        span = trim(batch["context"][row], int(offsets[first, 0]), int(offsets[last, 1]))
        assert (candidate.start, candidate.end) == span


def test_white_space_without_a_character_is_no_answer():
    batch = make_batch(["who"], ["the  city"], "roberta")
    empty = ((batch["offsets"][0, :, 0] == batch["offsets"][0, :, 1]) & batch["span_mask"][0]).nonzero().flatten()[1:]
    assert len(empty)  # the two blanks are one byte-level token of their own, at the least
    outputs = {name: torch.zeros(batch["input_ids"].shape) for name in ("start_logits", "end_logits")}
    for logits in outputs.values():
        logits[0, empty] = 100.0
    (candidate,) = QuestionAnswering().candidates(outputs, batch)
    assert candidate.score == 0.0
    assert candidate.start < candidate.end


CANDIDATES = [
    Candidate(score=4.0, null=9.0, probability=0.1, null_probability=0.8, start=0, end=3),
    Candidate(score=6.0, null=7.0, probability=0.5, null_probability=0.3, start=4, end=9),
    Candidate(score=-math.inf, null=8.0, probability=0.0, null_probability=1.0, start=0, end=0),
]


def test_the_answer_is_the_best_span_of_all_windows_unless_none_is_better():
    text = TEXTS[0]
    tower = {"answer": "tower", "score": 0.5, "start": 4, "end": 9}
    nothing = {"answer": "", "score": 0.3, "start": None, "end": None}
    assert QuestionAnswering().settle(CANDIDATES, text, threshold=-99.0) == tower
    task = QuestionAnswering(no_answer=True)
    assert task.settle(CANDIDATES, text) == nothing  # 7 is the lowest score of none, and 6 the best span's
    assert task.settle(CANDIDATES, text, threshold=1.0) == tower
    assert task.settle(CANDIDATES, text, threshold=0.9) == nothing
    assert QuestionAnswering().settle(CANDIDATES[2:], "") == {"answer": "", "score": 1.0, "start": None, "end": None}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_are_the_characters_that_they_say(name):
    module = make_module(name)
    texts = [*TEXTS, "\u6771\u4eac\u30bf\u30ef\u30fc \U0001f468\u200d\U0001f469 na\u00efve"]
    pairs = [(question, text) for text in texts for question in ("who is?", "what", "where is the caf\u00e9")]
    for (_, context), found in zip(pairs, module.predict(pairs), strict=True):
        assert set(found) == {"answer", "score", "start", "end"}
        assert context[found["start"] : found["end"]] == found["answer"] == found["answer"].strip()
        assert 0.0 < found["score"] <= 1.0


def test_batches_and_windows_change_nothing_but_speed():
    module = make_module()
    pairs = [(question, text) for text in TEXTS for question in ("who", "what is the tower?")]
    together = module.predict(pairs, batch_size=64)
    alone = [module.predict([pair], batch_size=1)[0] for pair in pairs]
    for one, other in zip(together, alone, strict=True):
        assert one | {"score": 0} == other | {"score": 0}
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    assert module.predict([]) == []


@pytest.mark.parametrize("name", ["bert-uncased", "roberta-left"])
def test_a_long_context_is_answered_from_all_its_windows(name):
    module = make_module(name, max_answer_length=5)
    context = " ".join(f"city {i} of the tower" for i in range(40))
    (found,) = module.predict([("who is", context)])
    windows = encode_windows(module.tokenizer, ["who is"], [context], 64, 8)
    best = []
    for row in range(len(windows)):
        batch = pad_windows([windows[row]], Padding.of(module.tokenizer))
        with torch.no_grad():
            (candidate,) = module.task.candidates(module.eval()(batch), batch)
        best.append((candidate.score, candidate.start, candidate.end))
    assert len(best) > 4
    assert (found["start"], found["end"]) == max(best)[1:]


def test_the_windows_of_answers_are_those_of_the_task():
    rows = []
    for stride in (8, 30):
        module = make_module(doc_stride=stride)
        seen = []
        module.student.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        module.predict([("who is", TEXTS[2])])
        rows.append(sum(seen))
    assert 1 < rows[0] < rows[1]
    with pytest.warns(UserWarning, match="more than 2 tokens were cut"):
        make_module(max_question_length=2).predict([("who is the tower", TEXTS[0])])


def test_windows_of_predictions_are_at_most_as_long_as_asked():
    module, seen = make_module(), []
    hook = module.student.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    module.predict([("who", TEXTS[2])])
    module.predict([("who", TEXTS[2])], max_length=24)
    hook.remove()
    assert max(seen) == 64
    assert min(seen) <= 24
    assert seen[-1] <= 24


def test_windows_without_room_for_the_stride_share_less_and_find_the_answer_all_the_same():
    """A student of few positions keeps the stride of long windows in its task."""
    module, text = make_module(doc_stride=128), TEXTS[2]
    for length in (12, 40, None):
        found = module.predict([("who", text)], max_length=length)[0]
        assert text[found["start"] : found["end"]] == found["answer"] != ""
    narrow = encode_windows(module.tokenizer, ["who"], [text], 12, doc_stride=4, max_question_length=64)
    seen = []
    hook = module.student.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    module.predict([("who", text)], max_length=12)
    hook.remove()
    assert sum(seen) == len(narrow)
    with pytest.raises(DistillationError, match=r"max_length=4 has room for 0 .*doc_stride=0"):
        module.predict([("who", text)], max_length=4)


def test_the_threshold_of_the_module_decides_what_is_left_unanswered():
    module = make_module(no_answer=True)
    pairs = [("who", text) for text in TEXTS]
    module.thresholds = {"no_answer": -1e9}
    assert [found["answer"] for found in module.predict(pairs)] == [""] * 4
    module.thresholds = {"no_answer": 1e9}
    assert all(found["answer"] for found in module.predict(pairs))
    never = make_module(no_answer=False)
    never.thresholds = {"no_answer": -1e9}
    assert all(found["answer"] for found in never.predict(pairs))


def test_a_text_without_a_character_has_no_answer():
    for no_answer in (False, True):
        (found,) = make_module(no_answer=no_answer).predict([("who", "")])
        assert found == {"answer": "", "score": pytest.approx(1.0), "start": None, "end": None}


def test_a_context_of_a_hundred_thousand_characters():
    context = "the city of the tower " * 4600
    assert len(context) > 100_000
    (found,) = make_module().predict([("who", context)])
    assert context[found["start"] : found["end"]] == found["answer"]


def test_answer_takes_one_question_or_many():
    module = make_module()
    one = module.answer("who", TEXTS[0])
    assert one["answer"]
    assert module.answer(["who", "what"], TEXTS[0])[0]["answer"] == one["answer"]
    assert module.answer("who", TEXTS[:2])[0]["answer"] == one["answer"]
    assert len(module.answer(["who", "what"], TEXTS[:2])) == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["who is at the tower"], "pairs of a question and the context"),
        ([("who", "city"), "who"], "cannot be mixed"),
        ([("who", 3)], "Entry 0"),
    ],
)
def test_what_is_no_pair_is_refused(texts, message):
    with pytest.raises(DistillationError, match=message):
        make_module().predict(texts)


def test_a_batch_to_predict_gives_one_answer_per_question_and_few_rows_at_a_time():
    module, seen = make_module(), []
    windows = encode_windows(TOKENIZERS["bert-uncased"], ["who"] * 4, TEXTS, 64, 8)
    grouped = ByExample(windows)
    batch = pad_windows([grouped[2], grouped[0], grouped[1]], Padding.of(module.tokenizer))
    module.student.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        found = module.eval().predict_step(batch, 0)
    assert max(seen) <= 3 < sum(seen)
    expected = module.predict([("who", TEXTS[row]) for row in (2, 0, 1)])
    assert [answer["answer"] for answer in found] == [answer["answer"] for answer in expected]
    for part in split_rows(batch, 2):
        assert len(part["context"]) == len(part["input_ids"]) <= 2


@pytest.mark.parametrize("method", ["predict", "update_metrics", "candidates"])
def test_a_batch_without_texts_is_refused(method):
    task = QuestionAnswering()
    batch = {"input_ids": torch.zeros(1, 3).long(), "example": torch.zeros(1).long()}
    outputs = {"start_logits": torch.zeros(1, 3), "end_logits": torch.zeros(1, 3)}
    arguments = {
        "predict": (SimpleNamespace(), batch),
        "update_metrics": (task.new_metrics(), outputs, batch),
        "candidates": (outputs, batch),
    }
    with pytest.raises(DistillationError, match="the batch holds no offsets, context"):
        getattr(task, method)(*arguments[method])


def test_metrics_are_those_of_the_answers():
    module = make_module()
    task, metrics = module.task, module.task.new_metrics()
    questions = ["who"] * 4
    found = [answer["answer"] for answer in module.predict(list(zip(questions, TEXTS, strict=True)))]
    windows = encode_windows(TOKENIZERS["bert-uncased"], questions, TEXTS, 64, 8)
    windows.answers = [[found[0]], ["bridge"], [found[2], "x"], None]
    for part in ([0, 3], [1, 2], list(range(4, len(windows)))):
        batch = pad_windows(windows[part], Padding.of(module.tokenizer))
        with torch.no_grad():
            task.update_metrics(metrics, module.eval()(batch), batch)
    assert metrics.compute()["em"].item() == pytest.approx(2 / 3)
    assert metrics.per_example["em"].tolist() == [1.0, 0.0, 1.0]
    del batch["answers"]
    task.update_metrics(metrics, module(batch), batch)  # rows of which nothing is known


def test_options_and_monitors():
    assert QuestionAnswering(monitor="em").monitor == "val/em"
    assert QuestionAnswering(no_answer=True, monitor="f1").monitor == "val/f1"
    assert QuestionAnswering().mode == "max"
    for options in ({"max_answer_length": 0}, {"max_question_length": 0}, {"doc_stride": -1}):
        with pytest.raises(DistillationError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
            QuestionAnswering(**options)
    with pytest.raises(DistillationError, match=r"monitor='best_f1'.*\['em', 'f1'\]"):
        QuestionAnswering(monitor="best_f1")
    task = QuestionAnswering(no_answer=True, doc_stride=9)
    assert task.to_config()["init_args"] == {"no_answer": True, "doc_stride": 9}


def test_the_same_words_in_bfloat16():
    batch = make_batch(["who is"] * 4, TEXTS)
    outputs = make_outputs(batch)
    half = {name: value.bfloat16() for name, value in outputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = QuestionAnswering().candidates(half, batch)
    for one, other in zip(found, QuestionAnswering().candidates(outputs, batch), strict=True):
        assert one.score == pytest.approx(other.score, rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("a cafe\u0301 here", (1, 6), "cafe\u0301"),
        ("the  city ", (3, 10), "city"),
        ("cafe\u0301s", (4, 6), "e\u0301s"),
        ("\u2764\ufe0f yes", (0, 1), "\u2764\ufe0f"),
        ("city", (0, 4), "city"),
        ("   ", (0, 3), ""),
    ],
)
def test_spans_end_at_whole_characters(text, span, expected):
    start, end = trim(text, *span)
    assert text[start:end] == expected
