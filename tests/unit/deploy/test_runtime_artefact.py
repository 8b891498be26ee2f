"""An artefact gives the answers of the student that it was made of, whatever the task and whatever the input."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForQuestionAnswering, RobertaForTokenClassification

from lightning_distilbert import DistillationError, DistillationModule, Student, load
from lightning_distilbert.deploy import runtime
from lightning_distilbert.retrieval.search import search as torch_search
from lightning_distilbert.tasks import (
    IntentClassification,
    MaskedLM,
    QuestionAnswering,
    Reranking,
    Retrieval,
    Task,
    TextClassification,
    TokenClassification,
)
from tests.artefacts import make_artefact
from tests.conftest import WORDS
from tests.tokenizers_of_kinds import make_tokenizers

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
TASKS: dict[str, Task] = {
    "labels": TextClassification(labels=["bad", "good"]),
    "unnamed": TextClassification(num_labels=3),
    "pairs": TextClassification(num_labels=3),
    "several": TextClassification(labels=["a", "b", "c"], problem_type="multi_label_classification"),
    "score": TextClassification(problem_type="regression"),
    "intents": IntentClassification(labels=["a", "oos", "b"]),
    "vectors": Retrieval(),
    "first token": Retrieval(pooling="cls", normalize=False, similarity="dot"),
    "masked": MaskedLM(top_k=3),
    "entities": TokenClassification(labels=TAGS),
    "ranks": Reranking(),
    "answers": QuestionAnswering(doc_stride=4, max_answer_length=5, max_question_length=16),
    "no answers": QuestionAnswering(doc_stride=4, no_answer=True),
}
ROBERTA = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def random_texts(seed: int, count: int = 12, longest: int = 150) -> list[str]:
    """Return two empty texts and others, some of them longer than the model's 64 positions."""
    draw = random.Random(seed)
    words = [*WORDS, ".", ",", "don't", "Jean-Luc", "caf\u00e9", "\u6771\u4eac", "\U0001f389", " \u00a0", "\x07", "\t"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, longest))) for _ in range(count - 2)]
    return ["", *texts, "   "]


def inputs_of(kind: str, seed: int = 0) -> list[Any]:
    texts, others = random_texts(seed), random_texts(seed + 1)
    if kind in ("pairs", "ranks"):
        return list(zip(texts, others, strict=True))
    if kind in ("answers", "no answers"):
        return list(zip(random_texts(seed, longest=30), others, strict=True))
    if kind == "masked":
        return [f"[MASK] {text} [MASK]" if place % 2 else f"a [MASK] {text}" for place, text in enumerate(texts)]
    if kind == "entities":
        return [*texts, *(text.split() for text in others), [], ["", "a"]]
    return texts


def assert_same(found: Any, wanted: Any) -> None:
    """Compare answers: scores within rounding, all else exactly."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_same(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for mine, theirs in zip(found, wanted, strict=True):
            assert_same(mine, theirs)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=2e-6)
    else:
        assert found == wanted


class Made:
    """Students and their artefacts, each made once."""

    def __init__(self, folder: Path, sources: dict[str, Path]) -> None:
        self.folder = folder
        self.sources = sources
        self.made: dict[str, tuple[DistillationModule, runtime.Artefact]] = {}

    def __call__(self, kind: str, architecture: str = "distilbert") -> tuple[DistillationModule, runtime.Artefact]:
        name = f"{kind}, {architecture}"
        if name not in self.made:
            student = self.folder / name / "student"
            self.module(kind, architecture).save_student(student)
            artefact = make_artefact(student, self.folder / name / "artefact")
            self.made[name] = load(student), runtime.load(artefact, threads=1)
        return self.made[name]

    def module(self, kind: str, architecture: str) -> DistillationModule:
        task = TASKS[kind]
        torch.manual_seed(7)
        if architecture in ("distilbert", "same"):
            source = str(self.sources.get(kind, self.sources["labels"]))
            student: Any = Student(source=source, layers=2, architecture=architecture)
            module = DistillationModule(task, student=student)
        else:
            tokenizer = make_tokenizers()[architecture]
            config = RobertaConfig(
                vocab_size=len(tokenizer), max_position_embeddings=80, initializer_range=0.5, **ROBERTA,
                pad_token_id=tokenizer.pad_token_id, type_vocab_size=1, **task.model_config(),
            )  # fmt: skip
            model = RobertaForTokenClassification if kind == "entities" else RobertaForQuestionAnswering
            module = DistillationModule(task, student=model(config))
            module._tokenizer = tokenizer
        if kind == "no answers":
            module.thresholds = {"no_answer": -5.5}  # which random weights pass now and then
        for name, parameter in module.student.named_parameters():  # a fresh head says nearly the same of all texts
            if name.startswith(("classifier", "qa_outputs")):
                torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.02)
        if kind == "intents":
            module.thresholds = {"out_of_scope": 0.5, "temperature": 0.3}
        if kind == "several":  # near one half, so that some are above it and some below
            module.student.classifier.bias.data = torch.tensor([-1.29, -1.11, -1.07])
        return module


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path, tiny_bert_dir: Path, tiny_mlm_dir: Path
) -> Made:
    vectors = {"vectors": tiny_bert_dir, "first token": tiny_bert_dir}
    sources = {"labels": tiny_teacher_dir, "masked": tiny_mlm_dir, **vectors}
    return Made(tmp_path_factory.mktemp("artefacts"), sources)


@pytest.mark.filterwarnings("ignore:.* questions of more than 16 tokens were cut")
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *((kind, "distilbert") for kind in TASKS),
        *((kind, "same") for kind in ("pairs", "answers", "entities", "vectors", "masked")),
        *((kind, name) for kind in ("answers", "entities") for name in ("roberta-left", "xlm-roberta")),
    ],
)
def test_the_answers_are_those_of_the_student(kind: str, architecture: str, made: Made):
    module, artefact = made(kind, architecture)
    assert artefact.max_length == 64
    assert ("token_type_ids" in artefact.session.inputs) == (architecture == "same")
    inputs = inputs_of(kind)
    wanted = module.predict(inputs)
    assert len(wanted) == len(inputs)
    assert_same(artefact.predict(inputs), wanted)
    assert_same(artefact.predict(inputs, batch_size=3), wanted)
    assert_same(artefact.predict(inputs[1:2]), wanted[1:2])
    assert artefact.predict([]) == module.predict([]) == []
    shorter = artefact.predict(inputs, max_length=50)
    assert_same(shorter, module.predict(inputs, max_length=50))
    assert shorter != wanted


def test_the_answers_differ_from_text_to_text(made: Made):
    assert len({found["label"] for found in made("unnamed")[1].predict(inputs_of("unnamed"))}) > 1
    found = {answer["label"] for answer in made("intents")[1].predict(inputs_of("intents"))}
    assert "oos" in found
    assert len(found) > 1
    counts = {len(found["labels"]) for found in made("several")[1].predict(inputs_of("several"))}
    assert len(counts) > 1
    spans = {found["answer"] for found in made("answers")[1].predict(inputs_of("answers"))}
    assert len(spans) > 5
    missing = [answer["answer"] == "" for answer in made("no answers")[1].predict(inputs_of("no answers"))]
    assert 2 < sum(missing) < len(missing) - 2
    kinds = {entity["label"] for entities in made("entities")[1].predict(inputs_of("entities")) for entity in entities}
    assert kinds == {"LOC", "PER"}


def test_characters_of_answers_and_entities_are_exact_in_long_texts(made: Made):
    text = "  ".join(random_texts(3, longest=200)) * 3
    answer = made("answers")[1].answer("who is the man", text)
    assert text[answer["start"] : answer["end"]] == answer["answer"] != ""
    found = made("entities")[1].tag(text)
    assert len(found) > 20
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in found)


def test_the_threshold_of_the_folder_decides_whether_there_is_an_answer(made: Made):
    module, artefact = made("no answers")
    inputs = inputs_of("no answers")
    assert artefact.thresholds == {"no_answer": -5.5} == module.thresholds
    counts = []
    for threshold in (-1e9, -5.5, 1e9):
        artefact.thresholds = {"no_answer": threshold}
        counts.append(sum(found["answer"] == "" for found in artefact.predict(inputs)))
    artefact.thresholds = dict(module.thresholds)
    assert counts[0] == len(inputs) > counts[1] > counts[2] == 2  # two contexts are empty


def test_named_methods_are_predict_for_one_or_many(made: Made):
    labels, pairs, tags = (made(kind)[1] for kind in ("labels", "pairs", "entities"))
    assert labels.classify("a film") == labels.predict(["a film"])[0]
    assert labels.classify(["a film", "no"]) == labels.predict(["a film", "no"])
    assert pairs.classify(("a", "film")) == pairs.predict([("a", "film")])[0]
    assert tags.tag("a man of the city") == tags.predict(["a man of the city"])[0]
    assert tags.tag([["a", "man"]]) == tags.predict([["a", "man"]])
    masked, answers = made("masked")[1], made("answers")[1]
    assert masked.fill("a [MASK]") == masked.predict(["a [MASK]"])[0]
    assert len(masked.fill(["a [MASK]", "[MASK] a"])) == 2
    several = answers.answer(["who", "what"], "the man of the city")
    assert several == answers.predict([("who", "the man of the city"), ("what", "the man of the city")])
    assert answers.answer("who", "the man of the city") == several[0]


def test_reranking_orders_documents(made: Made):
    artefact = made("ranks")[1]
    documents = [*random_texts(5), *random_texts(5)[:2]]
    found = artefact.rerank("a film", documents)
    scores = [answer["score"] for answer in artefact.predict([("a film", text) for text in documents])]
    assert sorted(item["index"] for item in found) == list(range(len(documents)))
    assert [item["score"] for item in found] == sorted(scores, reverse=True)
    assert artefact.rerank("a film", documents, top_k=3) == found[:3]
    assert artefact.rerank("a film", []) == []
    with pytest.raises(DistillationError, match="top_k=0"):
        artefact.rerank("a film", documents, top_k=0)
    with pytest.raises(DistillationError, match="single document"):
        artefact.rerank("a film", "a text")


def test_search_finds_what_the_package_finds(made: Made):
    module, artefact = made("vectors")
    corpus = [text for text in random_texts(8, count=60) if text.strip()]
    vectors = artefact.embed(corpus)
    assert vectors.shape == (len(corpus), 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, module.predict(corpus), atol=1e-5)
    assert artefact.embed("a film").shape == (32,)
    assert artefact.embed([]).shape == (0, 32)
    scores, places = artefact.search(corpus[:5], vectors, top_k=4)
    assert places[:, 0].tolist() == [0, 1, 2, 3, 4]
    wanted = torch_search(torch.tensor(vectors[:5]), torch.tensor(vectors), 4)
    np.testing.assert_allclose(scores, wanted[0], atol=1e-5)
    assert np.array_equal(places, wanted[1])
    assert np.array_equal(artefact.search(vectors[:5], vectors, top_k=4, block=3)[1], places)
    assert artefact.search("a film", vectors)[1].shape == (1, 10)


def test_search_compares_as_the_student_does(made: Made):
    _, artefact = made("first token")
    corpus = [text for text in random_texts(8, count=60) if text.strip()]
    vectors = artefact.embed(corpus) * np.linspace(0.1, 10.0, len(corpus), dtype=np.float32)[:, None]
    scores, places = artefact.search(corpus[:5], vectors)
    wanted = torch_search(torch.tensor(artefact.embed(corpus[:5])), torch.tensor(vectors), 10, similarity="dot")
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-4)
    assert np.array_equal(places, wanted[1])
    assert not np.array_equal(places, artefact.search(corpus[:5], vectors, similarity="cosine")[1])


def test_concurrent_calls_do_not_disturb_each_other(made: Made):
    artefact = made("entities")[1]
    texts = inputs_of("entities")
    wanted = artefact.predict(texts)
    with ThreadPoolExecutor(4) as pool:  # short and long limits in turn
        limits = [64, 20, 64, 20, 64, 20]
        found = list(pool.map(lambda limit: artefact.predict(texts, max_length=limit), limits))
    assert_same(found[0], wanted)
    assert_same(found[4], wanted)
    assert_same(found[1], artefact.predict(texts, max_length=20))


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("labels", "a text", "A single text was given, 'a text'"),
        ("labels", 5, "A int was given"),
        ("labels", None, "A NoneType was given"),
        ("labels", {"text": "a"}, "A dict was given"),
        ("labels", [5], "Entry 0 is 5"),
        ("labels", ["a", None], "Entry 1 is None"),
        ("labels", ["a", ("a", "b")], "cannot be mixed"),
        ("entities", "a text", "A single text was given"),
        ("entities", ["a", 3], "Entry 1 is '3'"),
        ("entities", [["a", 3]], "Entry 0 is"),
        ("answers", ["a text"], "is a single text"),
        ("masked", ["a text"], r"Entry 0 has no \[MASK\]"),
        ("masked", ["the " * 90 + "[MASK]"], "among the 64 tokens read"),
        ("vectors", [b"bytes"], "Entry 0 is b'bytes'"),
    ],
)
def test_what_is_no_input_is_refused_as_the_student_refuses_it(kind: str, inputs: Any, message: str, made: Made):
    module, artefact = made(kind)
    for predict in (module.predict, artefact.predict):
        with pytest.raises(DistillationError, match=message):
            predict(inputs)


def test_bad_options_are_refused(made: Made):
    artefact = made("labels")[1]
    with pytest.raises(DistillationError, match="batch_size=0"):
        artefact.predict(["a"], batch_size=0)
    with pytest.raises(DistillationError, match="max_length=2 leaves no room"):
        artefact.predict(["a"], max_length=2)
    with pytest.raises(DistillationError, match="max_length=2 leaves no room"):
        made("entities")[1].predict(["a"], max_length=2)
    module, artefact = made("answers")
    pair = [("who", "the man of the city of the man")]
    assert_same(module.predict(pair, max_length=8), artefact.predict(pair, max_length=8))
    with pytest.raises(DistillationError, match="room for 0 tokens of the context"):
        artefact.predict(pair, max_length=6)
    with pytest.raises(DistillationError, match="1 questions and 2 contexts"):
        made("answers")[1].answer(["who"], ["a", "b"])


@pytest.mark.parametrize("method", ["classify", "tag", "answer", "embed", "search", "rerank", "fill"])
def test_a_method_of_another_task_is_refused(method: str, made: Made):
    artefact = made("ranks" if method == "classify" else "labels")[1]
    arguments = ("a", ["b"]) if method in ("answer", "search", "rerank") else ("a",)
    with pytest.raises(DistillationError, match=rf"{method}\(\) is for a student of"):
        getattr(artefact, method)(*arguments)
