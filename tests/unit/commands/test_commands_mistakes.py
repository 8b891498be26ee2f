"""What a mistake in a YAML file or on the command line looks like: one line, with the nearest name."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lightning_distilbert import DistillationError, DistillationModule, TextClassification
from lightning_distilbert.cli import RECIPES, main
from lightning_distilbert.commands.mistakes import explain
from lightning_distilbert.commands.training import EarlyLook

RECIPE = yaml.safe_load((RECIPES / "text-classification.yaml").read_text(encoding="utf-8"))
GIVEN = ["--model.teacher", "teacher", "--data.source", "data"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "fit") -> str:
    with pytest.raises(SystemExit) as exit_:
        main([command, *arguments])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-distilbert"])


def recipe_with(keys: list[Any], value: Any) -> str:
    values = copy.deepcopy(RECIPE)
    part: Any = values
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    Path("mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return "mine.yaml"


# -- YAML --------------------------------------------------------------------------------------------------------------

SOFT = ["model", "objectives", 0]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ([*SOFT, "class_path"], "SoftTarget", "objectives: 'SoftTarget' is no class. Did you mean 'SoftTargets'?"),
        (
            [*SOFT, "class_path"], "lightning_distilbert.SoftTarget",
            "model.objectives: 'SoftTarget' is no class. Did you mean 'SoftTargets'?",
        ),
        (
            [*SOFT, "init_args"], {"temprature": 2.0},
            "model.objectives: SoftTargets has no argument 'temprature'. Did you mean 'temperature'?",
        ),
        (
            [*SOFT, "init_args"], {"temperature": "hot"},
            "model.objectives.temperature: 'hot' is neither a number nor a class. Known are Cosine, Linear.",
        ),
        (
            [*SOFT, "init_args"], {"weight": {"class_path": "Lineer"}},
            "model.objectives.weight: 'Lineer' is neither a number nor a class. Did you mean 'Linear'?",
        ),
        (["model", "objectives"], ["distilbert"], "'distilbert' is a preset, which stands alone and in no list"),
        (["model", "objectives"], {"class_path": "Similarty"}, "'Similarty' is no class. Did you mean 'Similarity'?"),
        (["model", "task", "class_path"], "Retreival", "task: 'Retreival' is no class. Did you mean 'Retrieval'?"),
        (["model", "task", "class_path"], "Nonsense", "is no class. Known are "),
        (["model", "task", "class_path"], "Nonsense", "of your own takes its full path, such as my_module.Nonsense."),
        (
            ["model", "task", "init_args"], {"num_label": 2},
            "model.task: TextClassification has no argument 'num_label'. Did you mean 'num_labels'?",
        ),
        (["model", "student", "class_path"], "Studnt", "model.student: 'Studnt' is no class. Did you mean 'Student'?"),
        (
            ["model", "student", "init_args"], {"layer": 2},
            "model.student: Student has no argument 'layer'. Did you mean 'layers'?",
        ),
        (["model", "teacher"], {"class_path": "Techer"}, "teacher: 'Techer' is no class. Did you mean 'Teacher'?"),
        (
            ["model", "task_weight"], {"class_path": "Linear", "init_args": {"end": 0.0}},
            "model.task_weight: Linear needs start.",
        ),
        (["model", "techer"], "x", "does not accept option 'model.techer'. Did you mean '--model.teacher'?"),
        (["data", "class_path"], "RetrivalData", "data: 'RetrivalData' is no class. Did you mean 'RetrievalData'?"),
        (
            ["data", "init_args"], {"sorce": "x"},
            "data: TextClassificationData has no argument 'sorce'. Did you mean 'source'?",
        ),
        (["data", "init_args"], {"sentence": "x"}, "has no argument 'sentence'. It has source, text, label, labels, "),
        (["trainer", "max_epoch"], 1, "not accept option 'trainer.max_epoch'. Did you mean '--trainer.max_epochs'?"),
        (
            ["trainer", "callbacks", 0, "class_path"], "ModelCheckpont",
            "trainer.callbacks: 'ModelCheckpont' is no class. Did you mean 'ModelCheckpoint'?",
        ),
        (
            ["trainer", "callbacks", 0, "init_args"], {"filname": "x"},
            "trainer.callbacks: ModelCheckpoint has no argument 'filname'. Did you mean 'filename'?",
        ),
        (["studentdir"], "x", "does not accept option 'studentdir'. Did you mean '--student_dir'?"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_in_a_recipe(keys: list[Any], value: Any, message: str, capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "--config", recipe_with(keys, value), *GIVEN)
    assert message in line
    assert len(line) < 300


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # a text is a preset's name to the parser
        (
            ["--model.objectives=[{class_path: SoftTarget}]"],
            "model.objectives: 'SoftTarget' is no class. Did you mean 'SoftTargets'?",
        ),
        (
            ["--model.objectives=[{class_path: SoftTargets, init_args: {temprature: 4}}]"],
            "model.objectives: SoftTargets has no argument 'temprature'. Did you mean 'temperature'?",
        ),
        (["--model.objectives={class_path: Similarty}"], "'Similarty' is no class. Did you mean 'Similarity'?"),
        (["--model.objectives+=Simlarity"], "no objectives named 'Simlarity'. Did you mean 'Similarity'?"),
        (["--model.objectives", "distillbert"], "no objectives named 'distillbert'. Did you mean 'distilbert'?"),
        (["--model.student={class_path: Studnt}"], "model.student: 'Studnt' is no class. Did you mean 'Student'?"),
        (["--model.student={class_path: Student, init_args: {layer: 3}}"], "'layer'. Did you mean 'layers'?"),
        (["--model.teacher={class_path: Techer}"], "model.teacher: 'Techer' is no class. Did you mean 'Teacher'?"),
        (["--model.student.layer", "3"], "model.student: Student has no argument 'layer'. Did you mean 'layers'?"),
        (["--model.task", "MaskdLM"], "model.task: 'MaskdLM' is no class. Did you mean 'MaskedLM'?"),
        (["--model.task.num_labels", "two"], "model.task.num_labels was given two: it has to be int or null."),
        (["--model.techer", "x"], "unrecognized arguments: --model.techer x. Did you mean '--model.teacher'?"),
        (["--data.sorce", "x"], "TextClassificationData has no argument 'sorce'. Did you mean 'source'?"),
        (["--data", "MaskedLMDat"], "data: 'MaskedLMDat' is no class. Did you mean 'MaskedLMData'?"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, tiny_teacher_dir: Path, capsys: pytest.CaptureFixture[str]
):
    Path("teacher").symlink_to(tiny_teacher_dir)
    line = refused(capsys, "--config", "recipes/text-classification.yaml", *GIVEN, *arguments)
    assert message in line
    assert len(line) < 300


def test_other_messages_stay_as_they_are():
    assert explain("Something\n else") == "Something else"
    assert explain("Subcommand 'fit' does not accept option 'zzz'") == "Subcommand 'fit' does not accept option 'zzz'."


# -- what a recipe leaves open -----------------------------------------------------------------------------------------


def never(*_: object, **__: object) -> None:
    raise AssertionError("models are built, or looked for on the hub")


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_placeholders_of_a_recipe_are_named_with_their_flags(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    text = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr("lightning_distilbert.commands.training.DistillationCLI.instantiate_classes", never)
    line = refused(capsys, "--config", f"recipes/{recipe}.yaml")
    assert "The recipe leaves open what only you can know. Give --" in line
    flags = {"teacher: name-": "--model.teacher (now 'name-your-teacher')", "source: name-your-data": "--data.source"}
    flags |= {"source: name-your-text": "--data.source", "source: name-your-model": "--model.student.source"}
    flags |= {"-student": "--model.student.source"}
    for placeholder, flag in flags.items():
        if placeholder != "-student":
            assert (flag in line) >= (placeholder in text)
        elif "name-your-general-student" in text or "name-your-intermediate-student" in text:
            assert flag in line
    # what was given is asked for no more
    line = refused(capsys, "--config", f"recipes/{recipe}.yaml", "--data.source", "mine")
    assert "--data.source" not in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.precision", "bf16_mixed"], "or 'bf16-true' or 'bf16-mixed' or .* Did you mean 'bf16-mixed'?"),
        (["--model.student.architecture", "bert"], "it has to be 'auto' or 'distilbert' or 'same'."),
        (["--data.batch_size", "many"], "error: data.batch_size was given many: it has to be int."),
        (["--model.learning_rate", "fast"], "error: model.learning_rate was given fast: it has to be float."),
        (["--data.problem_type", "one"], "data.problem_type was given one: .* or 'regression' or null."),
        (["--data.batch_size", "0"], "error: batch_size=0: it has to be 1 or more."),
        (["--model.student.encoder.layers", "2"], "model.student: Student has no argument 'encoder.layers'."),
        (
            ["--model.teacher", "None"],
            "error: --model.teacher was given the text 'None'. Nothing at all is written null",
        ),
    ],
)
def test_a_wrong_value_is_told_with_what_it_may_be(
    arguments: list[str], message: str, tiny_teacher_dir: Path, capsys: pytest.CaptureFixture[str]
):
    Path("teacher").symlink_to(tiny_teacher_dir)
    line = refused(capsys, "--config", "recipes/text-classification.yaml", *GIVEN, *arguments)
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), line)


@pytest.mark.parametrize("given", [["=null"], ["", "null"]])
def test_null_reaches_a_part_of_a_part(given: list[str], capsys: pytest.CaptureFixture[str]):
    flags = []
    for name in ("source", "layers", "dropout"):
        flags += [f"--model.student.encoder.{name}{given[0]}", *given[1:]]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "recipes/translation.yaml", *GIVEN, *flags, "--print_config"])
    assert exit_.value.code == 0
    encoder = yaml.safe_load(capsys.readouterr().out)["model"]["student"]["init_args"]["encoder"]
    assert encoder["class_path"].endswith("Student")
    assert [encoder["init_args"][name] for name in ("source", "layers", "dropout")] == [None, None, None]


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_wrong_checkpoint_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    Path("text.ckpt").write_text("no checkpoint", encoding="utf-8")
    Path("student").mkdir()
    given = ["--config", "recipes/text-classification.yaml", *GIVEN]
    with monkeypatch.context() as patch:
        patch.setattr("lightning_distilbert.commands.training.DistillationCLI.instantiate_classes", never)
        for path, message in (
            ("text.ckpt", "is no checkpoint of the Trainer"),
            ("student", "is a folder and no check"),
        ):
            assert message in refused(capsys, *given, "--ckpt_path", path, command=command)
        if command != "fit":
            line = refused(capsys, *given, "--ckpt_path", "best", command=command)
            assert f"--ckpt_path best is that of a fit in the same run, and {command} is none." in line


def test_a_misspelt_monitor_is_told_before_training(recwarn: pytest.WarningsRecorder):
    watching = [SimpleNamespace(monitor=name) for name in (None, "train/loss", "val/f1", "val/acuracy")]
    EarlyLook().on_sanity_check_end(
        SimpleNamespace(callback_metrics={"val/accuracy": 0, "val/f1": 0}, callbacks=watching), None
    )
    (told,) = [str(warning.message) for warning in recwarn]
    assert "watches 'val/acuracy'" in told
    assert "Did you mean 'val/accuracy'?" in told
    module = DistillationModule(TextClassification(problem_type="regression"), student=torch.nn.Linear(1, 1))
    with pytest.raises(
        DistillationError, match=r"--trainer\.callbacks\.monitor val/spearman --trainer\.callbacks\.mode"
    ):
        EarlyLook().on_sanity_check_end(
            SimpleNamespace(callback_metrics={"val/spearman": 0}, callbacks=[SimpleNamespace(monitor="val/accuracy")]),
            module,
        )


def test_weights_alone_are_no_checkpoint_to_evaluate(tiny_teacher_dir: Path, capsys: pytest.CaptureFixture[str]):
    Path("teacher").symlink_to(tiny_teacher_dir)
    torch.save({"weight": torch.ones(1)}, "weights.ckpt")
    given = ["--config", "recipes/text-classification.yaml", *GIVEN, "--ckpt_path", "weights.ckpt"]
    assert "has no 'state_dict', it holds ['weight']" in refused(capsys, *given, command="validate")
    torch.save({"state_dict": {}}, "weights.ckpt")
    assert "'weights.ckpt' is a checkpoint of another module" in refused(capsys, *given, command="test")


def test_recipe_that_is_no_utf_8_is_one_line(capsys: pytest.CaptureFixture[str]):
    Path("latin.yaml").write_bytes("# caf\u00e9\nseed_everything: 0\n".encode("latin-1"))
    for given in (["--config", "latin.yaml"], ["--config=latin.yaml"]):
        assert "latin.yaml is no UTF-8 text" in refused(capsys, *given)
