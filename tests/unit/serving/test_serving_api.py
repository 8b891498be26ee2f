"""What a worker answers, without a server around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lightning_distilbert import DistillationError, load
from lightning_distilbert.serving import api
from lightning_distilbert.serving.server import facts_of
from tests.artefacts import make_artefact
from tests.students import SENTENCES, TASKS, save_classifier

ROWS = {
    "questions": lambda pair: {"question": pair[0], "context": pair[1]},
    "reranking": lambda pair: {"query": pair[0], "document": pair[1]},
}


def answering(folder: Path, **options: Any) -> api.StudentAPI:
    found = api.APIS.get(facts_of(folder)["task"], api.StudentAPI)(folder, **options)
    found.setup("cpu")
    return found


def ask(server: api.StudentAPI, inputs: list[Any]) -> list[Any]:
    """Answer one request as FastAPI and LitServe hand it on."""
    body = server.decode_request.__annotations__["request"].model_validate_json(json.dumps({"inputs": inputs}))
    found = server.encode_response(server.predict(server.decode_request(body)))
    return list(found["predictions"])


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == pytest.approx(expected, rel=0.05, abs=0.02) if isinstance(expected, float) else found == expected


@pytest.mark.parametrize("name", TASKS)
def test_it_answers_as_the_folder_does_for_each_task(name: str, tmp_path: Path):
    folder, inputs = TASKS[name][0](tmp_path), TASKS[name][1]
    rows = [ROWS[name](pair) for pair in inputs] if name in ROWS else inputs
    found = ask(answering(folder, threads=1), rows)
    assert same(found, json.loads(json.dumps(load(folder).predict(inputs))))  # bfloat16 where the processor has it
    artefact = make_artefact(folder, tmp_path / "artefact")
    assert same(ask(answering(artefact, threads=1), rows), found)


def test_artefacts_of_other_runtimes(tmp_path: Path):
    from lightning_distilbert import deploy

    folder = TASKS["classification"][0](tmp_path)
    deploy.export(folder, tmp_path / "artefact", format="torch-export")
    server = answering(tmp_path / "artefact")
    assert same(ask(server, ["a good film"]), load(folder).predict(["a good film"]))


def test_words_are_tagged_as_they_are(tmp_path: Path):
    server = answering(TASKS["tokens"][0](tmp_path))
    assert isinstance(server, api.SentenceAPI)
    (found,) = ask(server, [["New", "York"]])
    assert found == server.model([["New", "York"]], 1)[0]


def test_a_request_that_is_refused_spoils_no_other(tmp_path: Path):
    server = answering(save_classifier(tmp_path), max_batch_size=3, batch_timeout=0.01)
    good, bad = ["the city", "a film"], ["the city", ("a", "pair")]
    answers = [server.encode_response(found) for found in server.predict([good, bad, good[:1]])]
    assert [len(answers[place]["predictions"]) for place in (0, 2)] == [2, 1]
    assert answers[1].status_code == 422
    assert "cannot be mixed" in json.loads(answers[1].body)["detail"]
    assert same(answers[0]["predictions"][0], answers[2]["predictions"][0])


def test_requests_answered_together_get_their_own_answers(tmp_path: Path):
    server = answering(TASKS["retrieval"][0](tmp_path), max_batch_size=4, batch_timeout=0.01)
    together = server.predict([SENTENCES[:1], SENTENCES[1:3], SENTENCES[3:]])
    assert [len(found) for found in together] == [1, 2, len(SENTENCES) - 3]
    assert same([vector for found in together for vector in found], server.model(SENTENCES, 32))


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (api.Texts, []),
        (api.Texts, [1]),
        (api.Texts, [["a", "b", "c"]]),
        (api.Sentences, [["a", 1]]),
        (api.Questions, ["who"]),
        (api.Questions, [{"question": "who"}]),
        (api.Questions, [{"question": "who", "context": "me", "contxt": "me"}]),
        (api.Candidates, [{"query": "who"}]),
    ],
)
def test_requests_of_another_form_reach_no_worker(kind: Any, inputs: list[Any]):
    with pytest.raises(ValidationError):
        kind(inputs=inputs)


def test_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(DistillationError, match=r"no config\.json"):
        api.load_model(tmp_path, "cpu")
