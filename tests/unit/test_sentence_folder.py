"""Folders of sentence-transformers: what they do to texts and vectors comes back, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer

from lightning_distilbert import DistillationError, DistillationModule, Teacher, load
from lightning_distilbert.retrieval.encode import open_encoder
from lightning_distilbert.tasks import Retrieval

TEXTS = ["a great movie", "the plot is dull and the story is very long", "no"]


def of_sentence_transformers(folder: Path, tokenizer: Any, source: Path, **library: Any) -> None:
    """Write a folder as sentence-transformers does, with some values in its configs."""
    AutoModel.from_pretrained(source).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    lower = {"max_seq_length": 32, "do_lower_case": library.pop("do_lower_case", False)}
    (folder / "sentence_bert_config.json").write_text(json.dumps(lower))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(library))


def test_texts_that_sentence_transformers_puts_into_lower_case_are_refused(
    tiny_bert_dir: Path, vocabulary, tmp_path: Path
):
    words = {word: index for index, word in enumerate(vocabulary)}
    cased = BertTokenizer(vocab=words, do_lower_case=False, model_max_length=64)
    of_sentence_transformers(tmp_path / "cased", cased, tiny_bert_dir, do_lower_case=True)
    match = r"sentence_bert_config\.json puts each text into lower case .*load\(path, task=Retrieval\("
    for read in (load, open_encoder):
        with pytest.raises(DistillationError, match=match):
            read(tmp_path / "cased")
    module = load(tmp_path / "cased", task=Retrieval(normalize=False))
    lower = load(tiny_bert_dir, task=Retrieval(normalize=False))
    assert module.predict(["A Film".lower()]) == lower.predict(["A Film"])
    # a tokenizer that does so itself gives the same
    for strip in (None, False):
        tokenizer = BertTokenizer(vocab=words, strip_accents=strip, model_max_length=64)
        of_sentence_transformers(tmp_path / f"lower{strip}", tokenizer, tiny_bert_dir, do_lower_case=True)
        assert load(tmp_path / f"lower{strip}").predict(["A Film"]) == lower.predict(["a film"])


def test_a_prompt_that_sentence_transformers_puts_before_each_text_is_refused(tiny_bert_dir: Path, tmp_path: Path):
    tokenizer, prompts = AutoTokenizer.from_pretrained(tiny_bert_dir), {"query": "the film ", "none": ""}
    options = {"prompts": prompts, "default_prompt_name": "query"}
    of_sentence_transformers(tmp_path / "model", tokenizer, tiny_bert_dir, **options)
    match = r"_sentence_transformers\.json puts a prompt before each text \('query': 'the film '\).*task=Retrieval"
    with pytest.raises(DistillationError, match=match):
        load(tmp_path / "model")
    vectors = load(tmp_path / "model", task=Retrieval(normalize=False)).predict(TEXTS)
    for index, name in enumerate(("none", None)):
        options = {"prompts": prompts, "default_prompt_name": name}
        of_sentence_transformers(tmp_path / str(index), tokenizer, tiny_bert_dir, **options)
        assert load(tmp_path / str(index)).predict(TEXTS) == vectors


def test_a_teacher_whose_texts_sentence_transformers_changes_is_refused(tiny_bert_dir: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    options = {"prompts": {"query": "the film "}, "default_prompt_name": "query"}
    of_sentence_transformers(tmp_path / "model", tokenizer, tiny_bert_dir, **options)
    batch = dict(tokenizer(TEXTS, return_tensors="pt", padding=True))
    with pytest.raises(DistillationError, match=r"puts a prompt .* Teacher\('.*model', pooling='mean'\)"):
        Teacher(str(tmp_path / "model"))(batch, {"embedding"})
    module = DistillationModule(Retrieval(), teacher=str(tmp_path / "model"), student=str(tiny_bert_dir))
    with pytest.raises(DistillationError, match="puts a prompt"):  # before the first step
        module.setup("fit")
    # its own answers do not need a pooling, and who names one knows
    assert Teacher(str(tmp_path / "model"))(batch, {"hidden_states"}).hidden_states is not None
    told = Teacher(str(tmp_path / "model"), pooling="mean")(batch, {"embedding"}).embedding
    torch.testing.assert_close(told, Teacher(str(tiny_bert_dir))(batch, {"embedding"}).embedding)


def test_what_sentence_transformers_compares_by_comes_back(tiny_bert_dir: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    for name, expected in {"cosine": "cosine", "dot": "dot", None: "cosine"}.items():
        folder = tmp_path / str(name)
        of_sentence_transformers(folder, tokenizer, tiny_bert_dir, similarity_fn_name=name)
        assert load(folder).task.similarity == expected
    of_sentence_transformers(tmp_path / "other", tokenizer, tiny_bert_dir, similarity_fn_name="manhattan")
    with pytest.warns(UserWarning, match="compares vectors by 'manhattan', which is not computed here"):
        assert load(tmp_path / "other").task.similarity == "cosine"
