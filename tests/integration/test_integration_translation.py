"""Translation through the Trainer: fit, distil, evaluate, save, load, resume, and translate from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DistilBertTokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    PreTrainedTokenizerFast,
)

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    Translation,
    TranslationData,
    TranslationStudent,
    load,
    train_target_tokenizer,
)
from lightning_distilbert.cli import main
from lightning_distilbert.corpus_translation import translate_corpus
from tests.conftest import tiny_vocabulary
from tests.parallel_texts import PAIRS, ROWS, TEXTS, TINY_DECODER, save_translator, student, trainer

WANTED = [translation for _, translation in PAIRS]


@pytest.fixture(scope="module")
def translator(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learnt the pairs."""
    folder = save_translator(tiny_bert_dir, tmp_path_factory.mktemp("tiny") / "translator")
    assert load(folder).predict(TEXTS) == WANTED
    return folder


def data(**options: Any) -> TranslationData:
    return TranslationData({"train": ROWS, "validation": ROWS}, **{"batch_size": 5, **options})


def distilled(teacher: Any, objectives: Any = "default", **options: Any) -> DistillationModule:
    arguments = {"student": TranslationStudent(Student(layers=1), **TINY_DECODER), "learning_rate": 5e-3, **options}
    return DistillationModule(
        Translation(num_beams=2, encoder_rate=1), teacher=teacher, objectives=objectives, **arguments
    )


def test_a_student_learns_from_a_teacher_and_is_scored_as_sacrebleu_scores_it(translator: Path, tmp_path: Path):
    module = distilled(str(translator), [SoftTargets(temperature=1.0)], task_weight=0.0)
    fitted = trainer(max_epochs=120, check_val_every_n_epoch=120)
    fitted.fit(module, data())
    greedy = Translation(num_beams=1)
    task, module.task = module.task, greedy
    found = module.predict(TEXTS)
    module.task = task
    assert fitted.callback_metrics["val/bleu"].item() == pytest.approx(sacrebleu.corpus_bleu(found, [WANTED]).score)
    assert fitted.callback_metrics["val/chrf"].item() == pytest.approx(
        sacrebleu.corpus_chrf(found, [WANTED]).score, rel=1e-5
    )
    assert fitted.callback_metrics["val/chrf"] > 60
    assert module.predict(TEXTS[:1]) == WANTED[:1]

    folder = module.save_student(tmp_path / "student")
    module.save_student(folder)  # again, over itself
    loaded = load(folder)
    assert loaded.predict(TEXTS) == module.predict(TEXTS)
    assert loaded.scores["val/bleu"] == pytest.approx(fitted.callback_metrics["val/bleu"].item())
    assert (type(loaded.task), loaded.task.num_beams) == (Translation, 2)
    # without this package, as the files say it
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    target = AutoTokenizer.from_pretrained(folder / "target_tokenizer")
    assert isinstance(tokenizer, DistilBertTokenizer)
    tokens = model.generate(**tokenizer(TEXTS, return_tensors="pt", padding=True))
    assert target.batch_decode(tokens, skip_special_tokens=True) == module.predict(TEXTS)
    # and on as the start of another fit
    further = DistillationModule(Translation(), student=str(folder))
    assert further.predict(TEXTS) == module.predict(TEXTS)


def test_soft_targets_are_compared_at_real_tokens_of_the_translations_and_nowhere_else(translator: Path):
    torch.manual_seed(1)
    module = distilled(str(translator), [SoftTargets(temperature=1.0)])
    source = data()
    trainer(max_steps=1, limit_val_batches=0).fit(module, source)
    batch = next(iter(source.train_dataloader()))
    module.eval()
    with module.watch(batch) as taps:
        module(batch)
    _, logs = module.distiller.total(None, taps.records)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    teacher = AutoModelForSeq2SeqLM.from_pretrained(translator).eval()
    real = batch["labels"] != -100
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits.double().log_softmax(-1) for model in (module.student, teacher))
    rows = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
    assert real.sum() < real.numel()
    assert logs["distill/soft_targets"].item() == pytest.approx(rows[real].mean().item(), rel=1e-4)
    assert rows[real].mean().item() != pytest.approx(rows.mean().item(), rel=1e-2)


def test_hidden_states_of_the_encoders_are_compared_too(translator: Path):
    torch.manual_seed(1)
    objectives = [SoftTargets(), HiddenStates(layers="uniform", metric="mse")]
    module = distilled(str(translator), objectives, student=TranslationStudent(Student(layers=2), **TINY_DECODER))
    source = data()
    trainer(max_steps=1, limit_val_batches=0).fit(module, source)
    batch = next(iter(source.train_dataloader()))
    module.eval()
    with module.watch(batch) as taps:
        module(batch)
    (record,) = taps.records
    real = batch["attention_mask"].bool()
    states = module.student.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert torch.allclose(record.signals.hidden_states[-1], states.last_hidden_state, atol=1e-5)
    assert torch.equal(record.signals.mask, real)
    assert record.signals.logits.shape[0] == (batch["labels"] != -100).sum()
    with torch.enable_grad():
        for parameter in module.student.decoder.parameters():
            parameter.grad = None
        terms = module.distiller.terms(taps.records)
        terms["hidden_states"].backward(retain_graph=True)
        assert all(parameter.grad is None for parameter in module.student.decoder.parameters())
        terms["soft_targets"].backward()
    assert any(parameter.grad is not None for parameter in module.student.decoder.parameters())
    alone = distilled(str(translator), [HiddenStates(layers="last", metric="mse")])
    trainer(max_steps=1, limit_val_batches=0).fit(alone, data())


def marian(size: int) -> MarianMTModel:
    """A random Marian; its translations begin with the same token as those of our tokenizers."""
    torch.manual_seed(0)
    return MarianMTModel(
        MarianConfig(
            vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
            pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, forced_eos_token_id=None, bad_words_ids=None,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def marian_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian with one tokenizer for both languages, of which its folder says nothing more."""
    folder = tmp_path_factory.mktemp("tiny") / "marian"
    tokenizer = train_target_tokenizer([*TEXTS, *WANTED], 120, max_length=32)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    marian(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_marian_teacher_with_its_own_reading_teaches_word_by_word(marian_dir: Path, tiny_bert_dir: Path):
    described = TranslationStudent(str(tiny_bert_dir), **TINY_DECODER)  # the teacher's vocabulary, another encoder
    module = distilled(str(marian_dir), [SoftTargets(temperature=1.0)], student=described, task_weight=0.0)
    source = data()
    fitted = trainer(max_epochs=30, check_val_every_n_epoch=30)
    fitted.fit(module, source)
    assert module._target_tokenizer.get_vocab() == AutoTokenizer.from_pretrained(marian_dir).get_vocab()
    batch = next(iter(source.train_dataloader()))
    assert batch["teacher_input_ids"].shape != batch["input_ids"].shape
    assert set(batch["decoder_input_ids"][:, 0].tolist()) == {0}
    module.eval()
    with module.watch(batch) as taps:
        module(batch)
    _, logs = module.distiller.total(None, taps.records)
    teacher = MarianMTModel.from_pretrained(marian_dir).eval()
    with torch.no_grad():
        theirs = teacher(
            input_ids=batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"],
            decoder_input_ids=batch["decoder_input_ids"],
        ).logits[batch["labels"] != -100]  # fmt: skip
        ours = taps.records[0].signals.logits
        cost = F.kl_div(ours.double().log_softmax(-1), theirs.double().log_softmax(-1), log_target=True,
                        reduction="none").sum(-1).mean()  # fmt: skip
    assert logs["distill/soft_targets"].item() == pytest.approx(cost.item(), rel=1e-2)
    with pytest.raises(DistillationError, match="share one tokenizer where they are compared token by token"):
        trainer(max_steps=1).fit(distilled(str(marian_dir), [HiddenStates()], student=described), data())


def test_a_finished_marian_teaches_and_a_saved_one_translates(marian_dir: Path, tiny_bert_dir: Path, tmp_path: Path):
    # a finished model comes without a tokenizer, and reads the student's ids
    tokenizer = AutoTokenizer.from_pretrained(marian_dir)
    described = TranslationStudent(str(tiny_bert_dir), **TINY_DECODER)
    for size in (len(tiny_vocabulary()), 150):
        module = distilled(marian(size), [SoftTargets()], student=described)
        if size != 150:
            trainer(max_steps=1, limit_val_batches=0).fit(module, data(target_tokenizer=tokenizer))
            continue
        with pytest.raises(DistillationError, match="cannot read the student's input_ids"):
            trainer(max_steps=1, limit_val_batches=0).fit(module, data(target_tokenizer=tokenizer))
    loaded = load(marian_dir)
    assert isinstance(loaded.task, Translation)
    found = loaded.predict(TEXTS[:2])
    assert len(found) == 2
    (tmp_path / "texts.en").write_text("\n".join(TEXTS), encoding="utf-8")
    assert translate_corpus(marian_dir, tmp_path / "texts.en", tmp_path / "out.jsonl", num_beams=1) == 5


def test_teachers_of_other_words_are_refused(translator: Path, tiny_bert_dir: Path, tmp_path: Path):
    def refused(message: str, teacher: Any, **options: Any) -> None:
        with pytest.raises(DistillationError, match=message):
            trainer(max_steps=1).fit(distilled(teacher, [SoftTargets()], **options), data())

    refused("writes 50 tokens and the teacher .* 90: two target tokenizers", str(translator),
            student=student(tiny_bert_dir, vocab_size=50))  # fmt: skip
    other = train_target_tokenizer(["ganz andere Wörter als die des Lehrers stehen hier", *TEXTS], 90)
    other.save_pretrained(tmp_path / "other")
    own = TranslationStudent(str(tiny_bert_dir), target_tokenizer=str(tmp_path / "other"), **TINY_DECODER)
    assert len(other) == 90
    refused(r"have 90 and \d+ tokens with other ids", str(translator), student=own)
    refused(r"begin with the token 2, those of MarianMTModel with 0", marian(90),
            student=student(tiny_bert_dir))  # fmt: skip
    refused("has to be a model ForSeq2SeqLM", str(tiny_bert_dir), student=student(tiny_bert_dir))
    # what compares no words is allowed
    module = distilled(
        str(translator), [HiddenStates(layers="last", projection="auto")], student=student(tiny_bert_dir, vocab_size=50)
    )
    trainer(max_steps=1, limit_val_batches=0).fit(module, data())


def test_a_run_is_resumed_with_its_target_tokenizer(tiny_bert_dir: Path, tmp_path: Path):
    def build() -> DistillationModule:
        torch.manual_seed(0)
        return DistillationModule(Translation(num_beams=1), student=student(tiny_bert_dir), learning_rate=5e-3)

    whole = build()
    trainer(max_epochs=4, limit_val_batches=0).fit(whole, data())
    half = build()
    stopped = trainer(max_epochs=2, limit_val_batches=0)
    stopped.fit(half, data())
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "half.ckpt")
    assert loaded._target_tokenizer.get_vocab() == half._target_tokenizer.get_vocab()
    assert loaded.predict(TEXTS) == half.predict(TEXTS)
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded.student.config, name) == getattr(half.student.config, name)
    resumed = build()
    further = trainer(max_epochs=4, limit_val_batches=0)
    further.fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert further.global_step == 4
    assert resumed._target_tokenizer.get_vocab() == half._target_tokenizer.get_vocab()
    rows = [{"source": text, "target": "ganz anders"} for text in TEXTS]
    with pytest.raises(DistillationError, match="another target tokenizer than the data"):
        trainer(max_epochs=4).fit(
            build(), TranslationData({"train": rows}), ckpt_path=tmp_path / "half.ckpt", weights_only=True
        )


def test_a_trainer_validates_and_predicts_with_a_saved_translator(translator: Path):
    module = load(translator)
    source = TranslationData({"validation": ROWS, "predict": [{"source": text} for text in TEXTS]}, batch_size=2)
    (scores,) = trainer().validate(module, source, verbose=False)
    assert scores["val/bleu"] == pytest.approx(100.0, abs=40)
    assert scores["val/chrf"] > 90
    batches = trainer().predict(module, source)
    assert [text for batch in batches for text in batch] == WANTED


def test_the_command_line_translates_files(translator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "new.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    main(["predict", "--model", str(translator), "--input", str(tmp_path / "new.txt"),
          "--output", str(tmp_path / "out.jsonl")])  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prediction"] for row in rows] == WANTED
    main(["translate-corpus", "--model", str(translator), "--input", str(tmp_path / "new.txt"),
          "--output", str(tmp_path / "distilled.jsonl"), "--precision", "32-true"])  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "distilled.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == ROWS
    assert "5 texts of" in capsys.readouterr().out
    # the rows are training data as they are
    source = TranslationData({"train": str(tmp_path / "distilled.jsonl")}, batch_size=5)
    trainer(max_epochs=1).fit(distilled(str(translator)), source)


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning", "ignore:Recommended. pip install sacremoses")
def test_marian_s_own_tokenizer_reads_one_language_and_writes_the_other(tiny_bert_dir: Path, tmp_path: Path):
    pieces = pytest.importorskip("sentencepiece")
    folder = tmp_path / "marian"
    folder.mkdir()
    ids = {"</s>": 0, "<unk>": 1}
    for name, texts in (("source", TEXTS), ("target", WANTED)):
        (tmp_path / "texts").write_text("\n".join(texts * 20), encoding="utf-8")
        pieces.SentencePieceTrainer.train(
            input=str(tmp_path / "texts"), model_prefix=str(folder / name), vocab_size=40, hard_vocab_limit=False,
            minloglevel=2,
        )  # fmt: skip
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        model = pieces.SentencePieceProcessor(str(folder / f"{name}.spm"))
        for index in range(model.get_piece_size()):
            ids.setdefault(model.id_to_piece(index), len(ids))
    ids["<pad>"] = pad = len(ids)
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    MarianTokenizer(*files, source_lang="en", target_lang="de", model_max_length=32).save_pretrained(folder)
    teacher = marian(len(ids))
    for config in (teacher.config, teacher.generation_config):
        config.pad_token_id, config.eos_token_id, config.decoder_start_token_id = pad, 0, pad
    teacher.save_pretrained(folder)

    described = TranslationStudent(str(tiny_bert_dir), **TINY_DECODER)
    module = distilled(str(folder), [SoftTargets(weight=0.1)], student=described)
    fitted = trainer(max_epochs=180, limit_val_batches=0)
    fitted.fit(module, data())
    assert module.predict(TEXTS) == WANTED
    assert load(module.save_student(tmp_path / "student")).predict(TEXTS) == WANTED
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt", teacher=None, weights_only=True)
    assert loaded.predict(TEXTS) == WANTED
