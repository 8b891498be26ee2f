"""Students that translate: what they are built of, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertModel, MarianConfig, MarianMTModel

from lightning_distilbert import DistillationError, Student, TranslationStudent, train_target_tokenizer
from lightning_distilbert.spec import from_config
from tests.conftest import tiny_vocabulary

SEQ2SEQ = "AutoModelForSeq2SeqLM"


def build(teacher: object = None, **options: object):
    return TranslationStudent(**{"decoder_layers": 1, **options}).build(teacher, SEQ2SEQ)


def test_the_encoder_is_made_as_any_student_s(tiny_bert_dir: Path):
    whole = build(encoder=str(tiny_bert_dir))
    assert (type(whole.encoder).__name__, whole.encoder.config.num_hidden_layers) == ("BertModel", 4)
    cut = build(encoder=Student(source=str(tiny_bert_dir), layers=2))
    assert (type(cut.encoder).__name__, cut.encoder.config.n_layers) == ("DistilBertModel", 2)
    theirs = BertModel.from_pretrained(tiny_bert_dir).state_dict()
    assert torch.equal(whole.encoder.state_dict()["embeddings.word_embeddings.weight"],
                       theirs["embeddings.word_embeddings.weight"])  # fmt: skip
    fresh = build(encoder=Student(config={"model_type": "distilbert", "vocab_size": 9, "dim": 8, "n_heads": 2}))
    assert fresh.encoder.config.dim == 8


def test_every_size_of_the_decoder_is_an_option(tiny_bert_dir: Path):
    encoder = str(tiny_bert_dir)
    plain = build(encoder=encoder).config.decoder
    assert (plain.hidden_size, plain.num_attention_heads, plain.intermediate_size) == (32, 1, 128)
    assert (plain.vocab_size, plain.max_position_embeddings, plain.hidden_dropout_prob) == (8000, 128, 0.1)
    model = build(
        encoder=encoder, decoder_layers=2, decoder_hidden_size=24, decoder_heads=3, decoder_intermediate_size=40,
        vocab_size=50, max_target_positions=30, dropout=0.0, attn_implementation="eager",
    )  # fmt: skip
    decoder = model.config.decoder
    assert (decoder.num_hidden_layers, decoder.hidden_size, decoder.num_attention_heads) == (2, 24, 3)
    assert (decoder.intermediate_size, decoder.vocab_size, decoder.max_position_embeddings) == (40, 50, 30)
    assert (decoder.hidden_dropout_prob, model.encoder.config.hidden_dropout_prob) == (0.0, 0.1)
    assert (decoder.is_decoder, decoder.add_cross_attention) == (True, True)
    assert model.decoder.config._attn_implementation == "eager"
    ids = torch.tensor([[2, 7, 3]])
    assert model(input_ids=ids, decoder_input_ids=torch.tensor([[2, 5]])).logits.shape == (1, 2, 50)
    assert model.training


def test_it_is_described_by_plain_values(tiny_bert_dir: Path):
    spec = TranslationStudent(Student(source=str(tiny_bert_dir), layers=2), vocab_size=40)
    again = from_config(spec.to_config())
    assert isinstance(again, TranslationStudent)
    assert (again.encoder.layers, again.vocab_size, again.source) == (2, 40, str(tiny_bert_dir))


def test_its_vocabulary_is_that_of_a_tokenizer_or_the_teacher_s(tiny_bert_dir: Path, tmp_path: Path):
    tokenizer = train_target_tokenizer(["ein Hund und eine Katze"], 40)
    tokenizer.save_pretrained(tmp_path / "german")
    model = build(encoder=str(tiny_bert_dir), target_tokenizer=str(tmp_path / "german"))
    assert model.config.decoder.vocab_size == len(tokenizer)
    special = (model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id)
    assert special == (2, 3, 0)
    teacher = build(encoder=str(tiny_bert_dir), vocab_size=77)
    own = build(teacher)
    assert own.config.decoder.vocab_size == 77
    assert own.encoder.config.n_layers == 2  # half of the teacher's encoder, as DistilBERT
    teacher.save_pretrained(tmp_path / "teacher")
    for encoder in (None, str(tiny_bert_dir)):
        assert build(str(tmp_path / "teacher"), encoder=encoder).config.decoder.vocab_size == 77


def test_a_marian_teacher_lends_its_vocabulary_and_not_its_encoder(tiny_bert_dir: Path):
    config = MarianConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=59,
        eos_token_id=0, decoder_start_token_id=59,
    )  # fmt: skip
    teacher = MarianMTModel(config)
    model = build(teacher, encoder=str(tiny_bert_dir))
    special = (model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id)
    assert (model.config.decoder.vocab_size, *special) == (60, 59, 0, 59)
    with pytest.raises(DistillationError, match=r"encoder of a 'marian' model. Name the encoder"):
        build(teacher)


def test_bad_options_are_refused(tiny_bert_dir: Path, tokenizer_dir: Path):
    for name in ("decoder_layers", "decoder_hidden_size", "decoder_heads", "vocab_size", "max_target_positions"):
        with pytest.raises(DistillationError, match=rf"{name}=0\): it has to be 1 or more"):
            TranslationStudent(**{name: 0})
    with pytest.raises(DistillationError, match="a size of its own"):
        TranslationStudent(vocab_size=10, target_tokenizer="x")
    with pytest.raises(DistillationError, match="give a Student"):
        TranslationStudent(encoder=TranslationStudent())
    with pytest.raises(DistillationError, match="5 attention heads do not divide"):
        build(encoder=str(tiny_bert_dir), decoder_heads=5)
    with pytest.raises(DistillationError, match="has no eos_token"):
        build(encoder=str(tiny_bert_dir), target_tokenizer=str(tokenizer_dir))
    with pytest.raises(DistillationError, match="the task wants an AutoModel"):
        TranslationStudent(str(tiny_bert_dir)).build(None, "AutoModel")
    with pytest.raises(DistillationError, match="there is none"):
        build()


def test_a_plain_student_is_not_cut_out_of_a_model_that_translates(tiny_bert_dir: Path):
    teacher = build(encoder=str(tiny_bert_dir), vocab_size=len(tiny_vocabulary()))
    with pytest.raises(DistillationError, match="is a TranslationStudent"):
        Student(layers=2).build(teacher, SEQ2SEQ)
