"""What data do for a teacher that reads, names or holds other things than the student."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import transformers
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, EncoderDecoderModel

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    MaskedLM,
    MaskedLMData,
    QuestionAnswering,
    QuestionAnsweringData,
    Reranking,
    RerankingData,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    Translation,
    TranslationData,
    load,
)
from lightning_distilbert.deploy.evaluation_data import open_evaluation
from lightning_distilbert.errors import DistillationError
from tests.conftest import save_tiny_bert
from tests.parallel_texts import ROWS, student

PAIRS = [{"a": "good film", "b": "the best", "label": 1}, {"a": "bad", "b": "not good", "label": 0}]


def attached(data, module, fn="fit"):
    data.trainer = SimpleNamespace(lightning_module=module, state=SimpleNamespace(fn=fn), callbacks=[])
    return data


def batch_of(data):
    data.setup("fit")
    data.trainer.state.fn = None  # there are no counts of batches to go on from
    return next(iter(data.train_dataloader()))


@pytest.fixture
def small(tiny_teacher_dir, tmp_path):
    """A DistilBERT's folder, whose tokenizer gives no token types."""
    module = DistillationModule(TextClassification(num_labels=2), tiny_teacher_dir, Student(layers=1))
    folder = module.save_student(tmp_path / "small")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(folder).model_input_names
    return str(folder)


def test_a_bert_is_told_the_parts_of_a_pair_though_the_student_reads_none(tiny_teacher_dir, small):
    def batch(teacher, **options):
        module = DistillationModule(TextClassification(num_labels=2), teacher, Student(source=small), **options)
        data = attached(TextClassificationData(PAIRS, text=["a", "b"]), module)
        return batch_of(data), module

    given, module = batch(str(tiny_teacher_dir))
    expected = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    order = [0, 1] if given["labels"].tolist() == [1, 0] else [1, 0]
    types = expected(*([PAIRS[i][name] for i in order] for name in "ab"), padding=True)["token_type_ids"]
    assert given["token_type_ids"].tolist() == types
    assert "token_type_ids" not in module.tokenizer.model_input_names  # the student's own is saved with it
    model = BertForSequenceClassification.from_pretrained(tiny_teacher_dir)  # a finished module has no tokenizer
    assert batch(model)[0]["token_type_ids"].tolist() == types
    # nobody reads them
    assert "token_type_ids" not in batch(None)[0]
    assert "token_type_ids" not in batch(small)[0]


def test_a_bert_is_told_question_from_context(tmp_path):
    teacher = str(save_tiny_bert(tmp_path / "reader", spans=True))
    module = DistillationModule(QuestionAnswering(), teacher, Student(layers=1))
    source = str(module.save_student(tmp_path / "small"))
    rows = [{"question": "who", "context": "the man", "answers": {"text": ["man"], "answer_start": [4]}}]
    module = DistillationModule(QuestionAnswering(), teacher, Student(source=source))
    batch = batch_of(attached(QuestionAnsweringData(rows), module))
    expected = AutoTokenizer.from_pretrained(teacher)("who", "the man")
    assert batch["input_ids"].tolist() == [expected["input_ids"]]
    assert batch["token_type_ids"].tolist() == [expected["token_type_ids"]]


def with_positions(folder, copy, positions):
    """Copy a model of random weights that reads fewer tokens than its tokenizer gives."""
    config = AutoConfig.from_pretrained(folder, max_position_embeddings=positions)
    getattr(transformers, config.architectures[0])(config).save_pretrained(copy)
    AutoTokenizer.from_pretrained(folder).save_pretrained(copy)
    return str(copy)


def test_rows_that_are_longer_than_the_teacher_reads_are_refused(tiny_teacher_dir, small, tmp_path):
    short = with_positions(tiny_teacher_dir, tmp_path / "short", 8)
    module = DistillationModule(TextClassification(num_labels=2), short, Student(source=small))
    rows = [{"text": "good film " * 10, "label": 1}, {"text": "bad", "label": 0}]
    with pytest.raises(DistillationError, match=r"up to 22 tokens, and the teacher reads 8 .*max_length=8"):
        attached(TextClassificationData(rows), module).setup("fit")
    assert batch_of(attached(TextClassificationData(rows, max_length=8), module))["input_ids"].shape == (2, 8)
    assert batch_of(attached(TextClassificationData(rows[1:] * 2), module))["input_ids"].shape == (2, 3)


@pytest.mark.parametrize("streaming", [False, True])
def test_sequences_that_are_longer_than_the_teacher_reads_are_refused(tiny_mlm_dir, tmp_path, streaming: bool):
    pytest.importorskip("datasets")
    short = with_positions(tiny_mlm_dir, tmp_path / "short", 16)
    module = DistillationModule(MaskedLM(), short, Student(source=str(tiny_mlm_dir)))
    (tmp_path / "train.txt").write_text("\n".join(["the story of a man in the big old city and his child " * 2] * 20))

    def data(**options):
        return attached(
            MaskedLMData(tmp_path / "train.txt", cache_dir=tmp_path / "cache", streaming=streaming, **options), module
        )

    longest = 64 if streaming else 32  # of a stream nobody knows
    with pytest.raises(DistillationError, match=rf"up to {longest} tokens, and the teacher reads 16 .*max_length=16"):
        data().setup("fit")
    assert batch_of(data(max_length=16))["input_ids"].shape[1] == 16


def test_pairs_that_are_longer_than_the_teacher_reads_are_refused(tiny_teacher_dir, tmp_path):
    teacher = BertForSequenceClassification.from_pretrained(
        tiny_teacher_dir, num_labels=1, ignore_mismatched_sizes=True
    )
    teacher.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny_teacher_dir).save_pretrained(tmp_path / "wide")
    short = with_positions(tmp_path / "wide", tmp_path / "short", 12)
    module = DistillationModule(Reranking(), short, Student(source=str(tmp_path / "wide")))
    rows = [
        {"query": "good film", "document": "the best film of all", "negatives": ["a very very very bad film it is"]}
    ]

    def data(**options):
        return attached(RerankingData(rows, **options), module)

    with pytest.raises(DistillationError, match=r"up to 13 tokens, and the teacher reads 12 .*max_length=12"):
        data().setup("fit")
    assert batch_of(data(max_length=12))["input_ids"].shape[1] == 12


def test_translations_that_are_longer_than_the_teacher_reads_or_writes_are_refused(tiny_bert_dir, tmp_path):
    module = DistillationModule(Translation(), student=student(tiny_bert_dir))
    attached(TranslationData({"train": ROWS}), module).setup("fit")
    long = module.save_student(tmp_path / "long")

    def shortened(part: str, positions: int) -> str:
        config = AutoConfig.from_pretrained(long)
        getattr(config, part).max_position_embeddings = positions
        folder = shutil.copytree(long, tmp_path / part)
        EncoderDecoderModel(config).save_pretrained(folder)
        return str(folder)

    def setup(source: str, teacher: str, **options):
        module = DistillationModule(Translation(), teacher, Student(source=source))
        data = attached(TranslationData({"train": ROWS}, **options), module)
        data.setup("fit")
        return batch_of(data)

    narrow, short = shortened("encoder", 6), shortened("decoder", 5)
    with pytest.raises(DistillationError, match=r"up to 7 tokens, and the teacher reads 6 at most"):
        setup(str(long), narrow)
    with pytest.raises(DistillationError, match=r"A translation has \d+ tokens, and the teacher's decoder .* for 5\."):
        setup(str(long), short)
    with pytest.warns(UserWarning, match="2 of 5 pairs are too long and left out"):
        assert setup(str(long), narrow, max_length=6)["input_ids"].shape[1] == 6
    with pytest.warns(UserWarning, match="pairs are too long and left out"):
        assert setup(str(long), short, max_target_length=5)["labels"].shape[1] == 5


NAMED = [{"text": "good film", "label": "positive"}, {"text": "bad", "label": "negative"}]


def test_names_are_not_guessed_for_the_outputs_of_a_teacher_that_has_none(tiny_teacher_dir):
    def setup(objectives, **options):
        task = TextClassification(num_labels=2)
        module = DistillationModule(task, tiny_teacher_dir, Student(layers=1), objectives)
        data = attached(TextClassificationData(NAMED, **options), module)
        data.setup("fit")
        return data.label_set.names

    with pytest.raises(DistillationError, match=r"\['negative', 'positive'\], and the outputs of .*teacher have none"):
        setup([SoftTargets()])
    assert setup([SoftTargets()], labels=["positive", "negative"]) == ("positive", "negative")
    assert setup([HiddenStates()]) == ("negative", "positive")  # its outputs are compared with nothing


def test_names_are_not_guessed_in_an_evaluation(tiny_teacher_dir):
    module = load(tiny_teacher_dir)
    with pytest.raises(DistillationError, match="the outputs of the model have none"):
        open_evaluation(module, NAMED)
    assert open_evaluation(module, NAMED, reading={"labels": ["positive", "negative"]}).split == "validation"
