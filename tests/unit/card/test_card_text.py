"""What people read: how the student was made, what it scores, and what it cannot do."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    Linear,
    QuestionAnswering,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    Translation,
    TranslationData,
    __version__,
    load,
)
from lightning_distilbert.card import write_card
from lightning_distilbert.card.facts import read_facts
from lightning_distilbert.card.metadata import card_data
from lightning_distilbert.card.text import body
from tests.conftest import save_tiny_bert
from tests.parallel_texts import save_parallel, student, trainer
from tests.students import TASKS, save_classifier
from tests.unit.card.test_card_metadata import tell

ROWS = [{"text": f"the {'great' if i % 2 else 'dull'} movie number {i}", "label": i % 2} for i in range(12)]


def text(folder: Path, **given: Any) -> str:
    return body(read_facts(folder), "films", "student", None, given, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a student of a teacher, with scores."""
    folder = tmp_path_factory.mktemp("text")
    teacher = save_tiny_bert(folder / "teacher", num_labels=2)
    objectives = [SoftTargets(temperature=3.0, weight=Linear(1, 0)), HiddenStates(layers=[[1, 1]], weight=0.5)]
    module = DistillationModule(
        TextClassification(labels=["bad", "good"]), str(teacher), Student(layers=2), objectives, task_weight=0.25
    )
    data = TextClassificationData({"train": ROWS, "validation": ROWS[:6]}, batch_size=4, max_length=32)
    trainer(max_epochs=1).fit(module, data)
    return module.save_student(folder / "student")


def test_card_says_how_it_was_made(trained: Path):
    told = text(trained)
    assert "A DistilBERT of 2 layers that classifies texts: one of 2 labels. It was distilled from `teacher`" in told
    assert (
        "**Teacher**: `teacher`, which is not on the hub: BertForSequenceClassification, 4 layers, 43,426 par" in told
    )
    assert "copies of the layers 0, 3 of the teacher, counted from 0" in told
    assert "| the task's own loss | 0.25 |" in told
    assert "| SoftTargets | Linear(start 1, end 0) | temperature 3 | Divergence of the student's predictions" in told
    assert "| HiddenStates | 0.5 | layers 1, 1 |" in told
    assert "| data | rows in memory, 12 rows |" in told
    assert "| tokens kept of a text | 32 |" in told
    assert "| steps | 3 (1 pass over the data) |" in told
    assert "| rows in a step | 4 |" in told
    assert "learning rate 5e-05, precision 32-true" in told
    assert "0 for the order of the rows" in told
    (versions,) = [line for line in told.splitlines() if line.startswith("| versions |")]
    known = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    assert [name for name, version in known.items() if f" {name} {version}" not in versions] == []
    assert f" lightning_distilbert {__version__}," in versions
    assert "| accuracy | 0." in told


def test_limits_are_those_of_this_student(trained: Path):
    told = text(trained)
    assert "It reads 64 tokens of a text; the rest is cut. In training it saw no more than 32." in told
    assert "Nobody recorded the language" in told
    assert "It gives one of its labels to any text" in told
    assert "It was measured on validation data alone: other data may give less." in told
    assert "No licence is stated." in told
    assert "Nothing else was measured" in told
    more = text(trained, language=["en"], licence="mit")
    assert "It was trained for `en` and for no other language." in more
    assert "No licence" not in more


def test_scores_on_test_data_need_no_excuse(trained: Path):
    told = body(read_facts(trained, {"accuracy": 0.5}), "films", "student", None, {}, None)
    assert "validation data alone" not in told
    assert "| metric | validation | test |" in told


def test_checkpoint_that_was_chosen_is_told(trained: Path, tmp_path: Path):
    folder = load(trained).save_student(tmp_path / "again")
    fits = [dict(read_facts(folder).fits[0], monitor="val/accuracy", devices=2, accumulated=4)]
    told = text(tell(folder, fits=fits))
    assert "`val/accuracy` may have chosen the checkpoint" in told
    assert "| rows in a step | 4 x 2 devices x 4 batches |" in told


def test_two_fits_are_two_parts(trained: Path, tmp_path: Path):
    module = load(trained).train()
    trainer(max_steps=1).fit(module, TextClassificationData({"train": ROWS, "validation": ROWS}, batch_size=4))
    told = text(module.save_student(tmp_path / "further"))
    assert "**Training, part 1 of 2** (with the teacher):" in told
    assert "**Training, part 2 of 2** (without a teacher):" in told
    assert "It was distilled from `teacher`" in told


def test_untrained_student_says_that_nothing_is_known(tmp_path: Path):
    told = text(save_classifier(tmp_path))
    assert "How it was trained is not recorded." in told
    assert "Data, steps, seed and versions were not recorded." in told
    assert "Nothing was measured" in told
    assert "## Scores" not in told


def test_fine_tuned_student_names_its_start(tmp_path: Path):
    teacher = save_tiny_bert(tmp_path / "start", num_labels=2)
    module = DistillationModule(TextClassification(2), student=Student(source=str(teacher)))
    trainer(max_steps=1).fit(module, TextClassificationData({"train": ROWS, "validation": ROWS}, batch_size=4))
    told = text(module.save_student(tmp_path / "student"))
    assert "A BERT of 4 layers that classifies texts: one of 2 labels. It was fine-tuned from `start`" in told
    assert "**Loss**" not in told
    assert "label 0 is `LABEL_0`" in told


def test_names_on_the_hub_are_links(trained: Path, tmp_path: Path):
    folder = load(trained).save_student(tmp_path / "again")
    fit = dict(read_facts(folder).fits[0])
    fit |= {"teacher": {"hub": "a/teacher"}, "data": {"source": {"hub": "b/data:c"}, "rows": 67349}}
    told = text(tell(folder, fits=[fit]))
    assert "distilled from [a/teacher](https://huggingface.co/a/teacher)." in told
    assert "[b/data:c](https://huggingface.co/datasets/b/data), 67,349 rows" in told


def test_what_each_task_does(tmp_path: Path):
    told = {name: text(make(tmp_path / name)) for name, (make, _) in TASKS.items()}
    assert "finds entities in texts" in told["tokens"]
    assert "finds the answers to questions" in told["questions"]
    assert "read in windows by lightning_distilbert" in told["questions"]
    assert "embeds texts" in told["retrieval"]
    assert "scores how well a document answers a query" in told["reranking"]
    assert "fills in masked words" in told["mlm"]
    assert "labels" not in told["retrieval"].replace("labels alone", "")


def test_translator_names_its_languages(tiny_mlm_dir: Path, tmp_path: Path):
    pytest.importorskip("sacrebleu")
    module = DistillationModule(Translation(num_beams=2), student=student(tiny_mlm_dir))
    folder = save_parallel(tmp_path / "texts")
    trainer(max_steps=1, limit_val_batches=0).fit(module, TranslationData(folder, languages=["en", "de"], batch_size=5))
    facts = read_facts(module.save_student(tmp_path / "student"))
    told = body(facts, "films", "student", None, {}, None)
    assert card_data(facts, "films", {}).language == ["en", "de"]
    assert "It was trained for `en`, `de` and for no other language." in told
    assert "It may leave out or make up parts of a translation." in told
    assert "An encoder of 2 layers with a decoder, that translates texts." in told
    assert card_data(facts, "films", {"language": "fr"}).language == "fr"


def test_thresholds_are_told(tmp_path: Path):
    teacher = save_tiny_bert(tmp_path / "teacher", spans=True)
    module = DistillationModule(QuestionAnswering(no_answer=True), student=Student(source=str(teacher), layers=1))
    module.thresholds = {"no_answer": 0.625}
    assert "Its threshold `no_answer` is 0.625, chosen on validation data." in text(module.save_student(tmp_path / "s"))


def test_many_labels_are_cut(tmp_path: Path):
    teacher = save_tiny_bert(tmp_path / "teacher", num_labels=30)
    labels = [f"kind {number}" for number in range(30)]
    module = DistillationModule(TextClassification(labels=labels), student=Student(source=str(teacher), layers=1))
    told = text(module.save_student(tmp_path / "student"))
    assert "`kind 19` and 10 more |" in told
    assert "kind 20" not in told


def test_names_cannot_break_out_of_their_place(tmp_path: Path):
    teacher = save_tiny_bert(tmp_path / "teacher", num_labels=2)
    labels = ["a`b|c\n# no title", "--> <script>"]
    module = DistillationModule(TextClassification(labels=labels), student=Student(source=str(teacher), layers=1))
    folder = module.save_student(tmp_path / "student")
    write_card(folder, name="films")
    card = (folder / "README.md").read_text()
    assert "| labels | `a'b\\|c # no title`, `--> <script>` |" in card
    assert card.count("\n# ") == 1


def test_unknown_folder_is_described_as_far_as_it_goes(tiny_teacher_dir: Path):
    told = text(tiny_teacher_dir)
    assert "A BERT of 4 layers that classifies texts: one of 2 labels. How it was trained is not recorded." in told
    assert "It was not made with lightning_distilbert, and nothing is recorded." in told
