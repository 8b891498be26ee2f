from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertModel

from lightning_distilbert import DistillationError, DistillationModule, Retrieval, load
from lightning_distilbert.tasks import Task


@pytest.fixture(scope="module")
def model(tiny_bert_dir) -> BertModel:
    return AutoModel.from_pretrained(tiny_bert_dir).eval()


def texts(rows: int, length: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_embedding_is_the_pooled_last_hidden_state(model: BertModel):
    batch = texts(3)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.double()
        mean = Retrieval(normalize=False).embed(model, batch)
        first = Retrieval(pooling="cls", normalize=False).embed(model, batch)
        unit = Retrieval().run(model, batch)["embedding"]
    expected = torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0), hidden[2].mean(0)])
    torch.testing.assert_close(mean, expected.float())
    torch.testing.assert_close(first, hidden[:, 0].float())
    torch.testing.assert_close(unit, F.normalize(expected, dim=-1).float())


def test_training_batch_gives_both_sides(model: BertModel):
    batch = {"query": texts(2, seed=1), "document": texts(2, 8, seed=2)}
    outputs = Retrieval().run(model, batch)
    assert outputs.keys() == {"query", "document"}
    torch.testing.assert_close(outputs["document"], Retrieval().embed(model, batch["document"]))


def contrastive_by_hand(queries, documents, ids, temperature: float) -> float:
    """Cross-entropy of each query over the documents, less other copies of its own, in double precision."""
    q, d = queries.double().numpy(), documents.double().numpy()
    rows = []
    for i in range(len(q)):
        scores = {j: float(q[i] @ d[j]) / temperature for j in range(len(d)) if j == i or ids[j] != ids[i]}
        rows.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[i])
    return float(np.mean(rows))


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_loss_is_in_batch_contrastive(temperature: float):
    generator = torch.Generator().manual_seed(3)
    queries, documents = (F.normalize(torch.randn(5, 8, generator=generator), dim=-1) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 0, 4])
    batch = {"query": texts(5), "document": texts(5), "document_index": ids}
    loss = Retrieval(temperature=temperature).loss({"query": queries, "document": documents}, batch)
    expected = contrastive_by_hand(queries, documents, ids.tolist(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    without_ids = Retrieval(temperature=temperature).loss(
        {"query": queries, "document": documents}, {"query": texts(5), "document": texts(5)}
    )
    assert without_ids.item() == pytest.approx(
        contrastive_by_hand(queries, documents, list(range(5)), temperature), rel=1e-4
    )
    assert without_ids.item() != pytest.approx(expected, rel=1e-4)


def test_loss_compares_as_the_search_does():
    generator = torch.Generator().manual_seed(3)
    queries, documents = (3 * torch.randn(5, 8, generator=generator) for _ in range(2))
    outputs, batch = {"query": queries, "document": documents}, {"query": texts(5), "document": texts(5)}
    by_dot = Retrieval(normalize=False, similarity="dot")
    assert by_dot.temperature == 1.0
    expected = contrastive_by_hand(queries, documents, list(range(5)), 1.0)
    assert by_dot.loss(outputs, batch).item() == pytest.approx(expected, rel=1e-5)
    by_cosine = Retrieval(normalize=False)
    assert by_cosine.temperature == Retrieval(similarity="dot").temperature == 0.05
    scaled = [F.normalize(vectors, dim=-1) for vectors in (queries, documents)]
    expected = contrastive_by_hand(*scaled, list(range(5)), 0.05)
    assert by_cosine.loss(outputs, batch).item() == pytest.approx(expected, rel=1e-4)
    colder = Retrieval(normalize=False, similarity="dot", temperature=2.0)
    assert colder.loss(outputs, batch).item() == pytest.approx(
        contrastive_by_hand(queries, documents, list(range(5)), 2.0), rel=1e-5
    )


def test_batch_of_texts_has_no_loss():
    assert Retrieval().loss({"embedding": torch.ones(2, 3)}, texts(2)) is None


def test_metrics_search_the_corpus():
    task = Retrieval()
    metrics = task.new_metrics()
    documents = torch.eye(4)
    queries = torch.tensor([[1.0, 0.1, 0.0, 0.0], [0.9, 1.0, 0.0, 0.0], [0.0, 1.0, 0.5, 0.2]])
    relevant = torch.tensor([[0], [0], [3]])
    task.update_metrics(
        metrics, {"embedding": queries}, {"index": torch.arange(3), "relevant": relevant, "grades": torch.ones(3, 1)}
    )
    task.update_metrics(metrics, {"embedding": documents[:3]}, {"index": torch.arange(3)})
    task.update_metrics(metrics, {"embedding": documents[3:]}, {"index": torch.tensor([3])})
    scores = {name: value.item() for name, value in metrics.compute().items()}
    # the three documents come first, second and third
    expected = (1 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)) / 3
    assert scores[task.monitor.removeprefix("val/")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("similarity", "rank"), [("cosine", 2), ("dot", 1)])
def test_metrics_compare_by_the_task_s_similarity(similarity: str, rank: int):
    task = Retrieval(normalize=False, similarity=similarity)
    metrics = task.new_metrics()
    task.update_metrics(
        metrics, {"embedding": torch.tensor([[10.0, 10.0], [1.0, 0.0]])}, {"index": torch.arange(2)}
    )  # by the dot product the first is nearest, by the cosine the second
    query = {"index": torch.tensor([0]), "relevant": torch.tensor([[0]])}
    task.update_metrics(metrics, {"embedding": torch.tensor([[1.0, 0.1]])}, query)
    assert metrics.compute()["mrr@10"].item() == 1 / rank


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_saved_folder_says_by_what_vectors_are_compared(similarity: str, tiny_bert_dir, tmp_path: Path):
    module = DistillationModule(Retrieval(normalize=False, similarity=similarity), student=str(tiny_bert_dir))
    module.save_student(tmp_path / "student")
    told = json.loads((tmp_path / "student" / "config_sentence_transformers.json").read_text())
    assert told["similarity_fn_name"] == similarity
    assert load(tmp_path / "student").task.similarity == similarity
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert encoder.similarity_fn_name == similarity
    vectors = torch.tensor(module.predict(["a great film", "a dog"]))
    wanted = vectors @ vectors.T if similarity == "dot" else F.cosine_similarity(vectors[:, None], vectors, dim=-1)
    torch.testing.assert_close(encoder.similarity(vectors, vectors), wanted)


def test_decode_gives_plain_lists():
    assert Retrieval().decode({"embedding": torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16)}) == [[0.5, -1.0]]


def test_an_unused_pooler_is_frozen(tiny_bert_dir):
    fresh = AutoModel.from_pretrained(tiny_bert_dir)
    Retrieval().prepare_model(fresh)
    frozen = {name for name, value in fresh.named_parameters() if not value.requires_grad}
    assert frozen == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"pooling": "max"}, "pooling='max': it is 'mean' or 'cls'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"similarity": "l2"}, "similarity='l2': it is 'cosine' or 'dot'"),
    ],
)
def test_options_out_of_range_are_refused(arguments, match: str):
    with pytest.raises(DistillationError, match=match):
        Retrieval(**arguments)


@pytest.mark.parametrize("method", ["run", "loss", "update_metrics"])
def test_base_task_computes_nothing(method: str):
    with pytest.raises(NotImplementedError):
        getattr(Task(), method)(*[None] * (3 if method == "update_metrics" else 2))
    assert Task().model_config() == {}


def test_hard_negatives_count_and_what_answers_too_does_not():
    generator = torch.Generator().manual_seed(3)
    queries, documents = torch.randn(3, 8, generator=generator), torch.randn(9, 8, generator=generator)
    outputs = {"query": queries, "document": documents}
    batch = {
        "query": texts(3),
        "document": texts(9),
        "document_index": torch.tensor([0, 1, 2, 5, 0, 6, 7, 8, -1]),
        "relevant_index": torch.tensor([[0, 6], [1, -2], [2, -2]]),
    }
    batch["document"]["attention_mask"][8] = 0
    found = Retrieval(temperature=0.5).loss(outputs, batch)
    left, right = (F.normalize(side.double(), dim=-1) for side in (queries, documents))
    excluded = {0: {4, 5, 8}, 1: {8}, 2: {8}}
    rows = []
    for i, out in excluded.items():
        scores = {j: float(left[i] @ right[j]) / 0.5 for j in range(9) if j not in out}
        rows.append(math.log(sum(map(math.exp, scores.values()))) - scores[i])
    assert found.item() == pytest.approx(float(np.mean(rows)), rel=1e-5)
    for name in ("document_index", "relevant_index"):
        changed = {key: value for key, value in batch.items() if key not in (name, "relevant_index")}
        assert Retrieval(temperature=0.5).loss(outputs, changed).item() != pytest.approx(found.item(), rel=1e-4)
    with pytest.raises(DistillationError, match=r"documents of shape \(8, 8\)"):
        Retrieval().loss({"query": queries, "document": documents[:8]}, {"query": texts(3), "document": texts(8)})


def test_negatives_of_a_query_without_a_token_do_not_count():
    generator = torch.Generator().manual_seed(4)
    outputs = {"query": torch.randn(3, 8, generator=generator), "document": torch.randn(6, 8, generator=generator)}
    batch = {"query": texts(3), "document": texts(6)}
    batch["query"]["attention_mask"][1] = 0
    kept = {"query": outputs["query"][[0, 2]], "document": outputs["document"][[0, 2, 3, 5]]}
    expected = Retrieval().loss(kept, {"query": texts(2), "document": texts(4)})
    torch.testing.assert_close(Retrieval().loss(outputs, batch), expected)
