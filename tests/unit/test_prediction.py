"""Questions put to a module: one, several, several to one text, and to a module of another task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification
from lightning_distilbert.tasks import QuestionAnswering

CONTEXTS = ["the man of the story is great", "a very long film in the city"]


@pytest.fixture
def module(tiny_bert_dir: Path) -> DistillationModule:
    return DistillationModule(QuestionAnswering(doc_stride=4), student=Student(source=str(tiny_bert_dir)))


def test_one_question_has_one_answer_and_a_list_a_list(module: DistillationModule):
    answer = module.answer("who is great", CONTEXTS[0])
    assert isinstance(answer, dict)
    assert answer["answer"] == CONTEXTS[0][answer["start"] : answer["end"]]
    assert [answer] == module.predict([("who is great", CONTEXTS[0])])
    assert module.answer(["who is great"], [CONTEXTS[0]]) == [answer]
    assert module.answer([], []) == []


def same(found: Any, expected: Any) -> bool:
    """Compare answers that were found in batches of other lengths."""
    spans = [[(one["answer"], one["start"], one["end"]) for one in answers] for answers in (found, expected)]
    scores = [[one["score"] for one in answers] for answers in (found, expected)]
    return spans[0] == spans[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_single_text_serves_all_questions_and_a_single_question_all_texts(module: DistillationModule):
    questions = ["who is great", "what is long", "where"]
    assert same(module.answer(questions, CONTEXTS[0]), [module.answer(one, CONTEXTS[0]) for one in questions])
    assert same(module.answer("where", CONTEXTS), [module.answer("where", one) for one in CONTEXTS])
    assert same(
        module.answer(questions[:2], CONTEXTS),
        [module.answer(*pair) for pair in zip(questions[:2], CONTEXTS, strict=True)],
    )


def test_batch_size_arrives(module: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    run = QuestionAnswering.run

    def watched(self: Any, model: Any, batch: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        return run(self, model, batch)

    monkeypatch.setattr(QuestionAnswering, "run", watched)
    module.answer(["who", "what", "where"], CONTEXTS[0], batch_size=2)
    assert sizes == [2, 1]


def test_questions_need_as_many_texts_and_a_module_that_answers(module: DistillationModule, tiny_teacher_dir: Path):
    with pytest.raises(DistillationError, match="There are 1 questions and 2 contexts"):
        module.answer(["who"], CONTEXTS)
    other = DistillationModule(TextClassification(num_labels=2), student=str(tiny_teacher_dir))
    with pytest.raises(DistillationError, match="student of TextClassification answers no questions"):
        other.answer("who", CONTEXTS[0])
