"""The command line: recipes, overrides, what a fit leaves behind, and what a user's mistake looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import lightning_distilbert
from lightning_distilbert import evaluation, load
from lightning_distilbert.cli import COMMANDS, RECIPES, find_recipes, main
from lightning_distilbert.commands.training import check_target
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.row_store import ENTRY, RowStore

ROOT = Path(__file__).resolve().parents[2]
TEXT = ["--config", "recipes/text-classification.yaml"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher_dir: Path, tiny_bert_dir: Path) -> Path:
    """Return an empty working folder but for two teachers and data of both tasks."""
    (tmp_path / "teacher").symlink_to(tiny_teacher_dir)
    (tmp_path / "encoder").symlink_to(tiny_bert_dir)
    (tmp_path / "data").mkdir()
    (tmp_path / "pairs").mkdir()
    for split, count in (("train", 16), ("dev", 8), ("test", 8)):
        lines = [f"the {'great' if i % 2 else 'dull'} movie is number {i}\t{i % 2}" for i in range(count)]
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
        lines = [f"movie number {i}\tthe story of movie {i} is long" for i in range(count)]
        (tmp_path / "pairs" / f"{split}.tsv").write_text("\n".join(["query\tdocument", *lines, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # the command line sets it, and takes the program's name from it
    monkeypatch.setattr(sys, "argv", ["lightning-distilbert"])
    return tmp_path


def text_fit(*more: str, epochs: int = 1) -> list[str]:
    own = ["--model.teacher", "teacher", "--data.source", "data", "--data.text", "sentence", "--data.batch_size", "4"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.devices", "1"]
    small = ["--model.student.layers", "2", "--trainer.max_epochs", str(epochs), "--student_dir", "student"]
    return ["fit", *TEXT, *own, *quiet, "--trainer.enable_model_summary", "false", *small, *more]


def run(*arguments: str, module: str = "lightning_distilbert.cli") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def parsed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the config that a command line leads to."""
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, "--print_config"])
    out, err = capsys.readouterr()
    assert exit_.value.code in (0, None), err
    return yaml.safe_load(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a mistake leaves."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" not in err
    assert "usage:" not in err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert lines == err.splitlines()[-1:]
    return lines[0]


# -- a real run --------------------------------------------------------------------------------------------------------


def test_fit_of_a_recipe_as_a_user_runs_it(workplace: Path, capsys: pytest.CaptureFixture[str]):
    done = run(*text_fit())
    assert done.returncode == 0, done.stderr
    assert f"The student is in {workplace / 'student'}" in done.stdout
    assert yaml.safe_load(next(workplace.rglob("config.yaml")).read_text())["trainer"]["precision"] == auto_precision()
    (checkpoint,) = workplace.rglob("best.ckpt")

    code = """
import sys
sys.modules["lightning_distilbert"] = None
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, report = AutoModelForSequenceClassification.from_pretrained("student", output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
tokens = AutoTokenizer.from_pretrained("student")("a great movie", return_tensors="pt")
print(type(model).__name__, model.config.n_layers, tuple(model(**tokens).logits.shape))
"""
    loaded = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "DistilBertForSequenceClassification 2 (1, 2)", loaded.stderr

    # the checkpoint describes its own model, so that the recipe's teacher need not be there any more
    (workplace / "teacher").unlink()
    rest = text_fit("--ckpt_path", str(checkpoint))[1:]
    del rest[rest.index("--student_dir") : rest.index("--student_dir") + 2]
    for command, split in (("validate", "val"), ("test", "test")):
        main([command, *rest])
        assert f"{split}/accuracy" in capsys.readouterr().out


def test_fit_with_every_kind_of_override_on_two_processes(workplace: Path):
    objectives = '[{"class_path": "SoftTargets", "init_args": {"temperature": 3.0}}, {"class_path": "Similarity"}]'
    done = run(
        *text_fit("--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.precision", "bf16-mixed"),
        *("--model.objectives", objectives, "--model.student.layers", "[0, 3]", "--model.student.architecture", "same"),
        *("--model.task_weight", "0.5", "--model.task.labels", "[dull, great]", "--seed_everything", "5"),
        *("--model.teacher", "lightning_distilbert.Teacher", "--model.teacher.source", "teacher"),
        *("--model.teacher.cache", "cache", "--trainer.max_epochs", "2"),
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(next(workplace.rglob("config.yaml")).read_text())
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert (config["trainer"]["strategy"], str(config["trainer"]["devices"])) == ("ddp", "2")
    saved = json.loads((workplace / "student" / "config.json").read_text())
    assert (saved["model_type"], saved["num_hidden_layers"], saved["initialised_from"]) == ("bert", 2, [0, 3])
    assert saved["id2label"] == {"0": "dull", "1": "great"}
    told = saved["lightning_distilbert"]
    assert [part["class_path"].rpartition(".")[2] for part in told["objectives"]] == ["SoftTargets", "Similarity"]
    assert told["objectives"][0]["init_args"]["temperature"] == 3.0
    assert told["task_weight"] == 0.5
    indices = list((workplace / "cache").glob("*.index"))
    assert len(indices) == 2  # each process has written what it read, and in the second epoch read what the other wrote
    assert sum(index.stat().st_size for index in indices) == 16 * ENTRY.size
    assert len(RowStore(workplace / "cache")) == 16


def test_retrieval_recipe_runs_and_saves_a_sentence_encoder(workplace: Path):
    main(
        [
            *("fit", "--config", "recipes/retrieval.yaml", "--model.teacher", "encoder", "--data.source", "pairs"),
            *("--trainer.max_epochs", "1", "--data.batch_size", "8", "--student_dir", "student"),
            *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false"),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        ]
    )
    assert json.loads((workplace / "student" / "config.json").read_text())["n_layers"] == 2  # half of four
    assert (workplace / "student" / "1_Pooling" / "config.json").is_file()


def test_saved_student_is_the_best_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    conclude = evaluation.conclude

    def concluded(module: Any, split: str) -> Any:
        module.thresholds = {"epoch": float(module.current_epoch)}
        return conclude(module, split)

    monkeypatch.setattr(evaluation, "conclude", concluded)
    # the highest validation loss is the first epoch's, since the student learns
    worst = ["--trainer.callbacks.monitor", "val/loss", "--trainer.callbacks.mode", "max"]
    main(text_fit(*worst, "--model.learning_rate", "1e-2", epochs=4))
    epochs = {path.stem: torch.load(path, weights_only=True)["epoch"] for path in workplace.rglob("*.ckpt")}
    assert epochs["last"] == 3  # and not that of the last improvement
    assert epochs["best"] < 3
    (best,) = workplace.rglob("best.ckpt")
    saved = load_file(workplace / "student" / "model.safetensors")
    weights = torch.load(best, weights_only=True)["state_dict"]
    assert saved
    assert all(torch.equal(value, weights[f"student.{name}"]) for name, value in saved.items())
    # what is told of the student is what was found with these weights
    told = json.loads((workplace / "student" / "config.json").read_text())["lightning_distilbert"]
    assert told["thresholds"] == {"epoch": epochs["best"]}
    assert told["metrics"] == torch.load(best, weights_only=True)["lightning_distilbert"]["metrics"]
    assert load("student").scores == told["metrics"]

    # the same run without checkpoints saves the last student, beside the logs where no place is named
    none = ["--trainer.callbacks", "null", "--trainer.enable_checkpointing", "false", "--student_dir", "null"]
    main(text_fit("--model.learning_rate", "1e-2", *none, epochs=4))
    (last,) = workplace.glob("lightning_logs/version_1/student/model.safetensors")
    later = load_file(last)
    assert saved.keys() == later.keys()
    assert not all(torch.equal(value, later[name]) for name, value in saved.items())


# -- parsing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_parses_against_the_signatures(recipe: Path, capsys: pytest.CaptureFixture[str], workplace: Path):
    config = parsed(capsys, "--config", f"recipes/{recipe.name}")
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))

    def holds(whole: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return all(name in whole and holds(whole[name], value) for name, value in part.items())
        if isinstance(part, list):
            return len(whole) == len(part) and all(map(holds, whole, part))
        return whole == part or str(whole).endswith(f".{part}")

    assert holds(config, written)
    assert written["trainer"]["precision"] is None
    # every argument that we add is in the printed config, so that it can be found and overridden
    arguments = {"task", "teacher", "student", "objectives", "task_weight", "learning_rate", "weight_decay", "warmup"}
    assert arguments <= set(config["model"])


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--model.objectives", "logits"], "model.objectives", "logits"),
        (["--model.objectives=[{class_path: Similarity}]"], "model.objectives.0.class_path", "Similarity"),
        (["--model.objectives+=Similarity"], "model.objectives.2.class_path", "Similarity"),
        (["--model.objectives=[{class_path: SoftTargets, init_args: {temperature: 4}}]"],
         "model.objectives.0.init_args.temperature", 4.0),
        (["--model.student.layers", "[0,3]"], "model.student.init_args.layers", [0, 3]),
        (["--model.student.rule", "last"], "model.student.init_args.rule", "last"),
        (["--model.student", "distilbert-base-uncased"], "model.student", "distilbert-base-uncased"),
        (["--model.teacher", "owner/name"], "model.teacher", "owner/name"),
        (["--model.teacher=Teacher", "--model.teacher.source=t", "--model.teacher.pooling=cls"],
         "model.teacher.init_args.pooling", "cls"),
        (["--model.task", "Retrieval"], "model.task.class_path", "Retrieval"),
        (["--model.task.labels", "[bad, good]"], "model.task.init_args.labels", ["bad", "good"]),
        (["--model.task_weight", "0.3"], "model.task_weight", 0.3),
        (["--model.task_weight=Linear", "--model.task_weight.start=1", "--model.task_weight.end=0"],
         "model.task_weight.init_args.start", 1.0),
        (["--data.text", "[first, second]"], "data.init_args.text", ["first", "second"]),
        (["--data", "RetrievalData", "--data.source", "x"], "data.class_path", "RetrievalData"),
        (["--trainer.strategy", "ddp", "--trainer.devices", "2"], "trainer.devices", 2),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision", "bf16-mixed"),
        (["--model.learning_rate", "1e-3"], "model.learning_rate", 1e-3),
        (["--student_dir", "here"], "student_dir", "here"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value and str(value[0]).startswith("--") else "",
)  # fmt: skip
def test_keys_are_overridden(arguments: list[str], key: str, value: Any, capsys, workplace: Path):
    found: Any = parsed(capsys, *TEXT, *arguments)
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert found == value or str(found).rpartition(".")[2] == str(value)


def test_printed_config_runs_again(capsys: pytest.CaptureFixture[str], workplace: Path):
    more = ["--model.teacher=Teacher", "--model.teacher.source=teacher", "--model.objectives+=Similarity"]
    config = parsed(capsys, *text_fit(*more)[1:])
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert parsed(capsys, "--config", "mine.yaml") == config
    main(["fit", "--config", "mine.yaml"])
    assert (workplace / "student" / "config.json").is_file()


def test_recipes_are_found_by_name_unless_such_a_file_is_here(workplace: Path):
    ours = str(RECIPES / "retrieval.yaml")
    assert find_recipes(["fit", "--config", "recipes/retrieval.yaml"]) == ["fit", "--config", ours]
    assert find_recipes(["fit", "--config=retrieval.yaml"]) == ["fit", f"--config={ours}"]
    assert find_recipes(["fit", "-c", "recipes/retrieval.yaml"]) == ["fit", "-c", ours]
    # another folder is the user's own
    assert find_recipes(["fit", "--config", "mine/retrieval.yaml"]) == ["fit", "--config", "mine/retrieval.yaml"]
    assert find_recipes(["fit", "--data", "recipes/retrieval.yaml"]) == ["fit", "--data", "recipes/retrieval.yaml"]
    Path("retrieval.yaml").touch()
    assert find_recipes(["fit", "--config", "retrieval.yaml"]) == ["fit", "--config", "retrieval.yaml"]


@pytest.mark.parametrize("name", ["text-clasification.yaml", "recipes/text-clasification.yaml", "nowhere.yml"])
def test_misspelt_recipe_gets_the_list_of_them(name: str, capsys: pytest.CaptureFixture[str], workplace: Path):
    message = refused(capsys, "fit", "--config", name)
    assert f"no recipe {Path(name).name!r}" in message
    assert all(path.name in message for path in RECIPES.glob("*.yaml"))
    assert ("Did you mean 'text-classification.yaml'?" in message) == ("clasif" in name)


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"recipes/{path.name}" for path in sorted(RECIPES.glob("*"))]
    assert all(len(line.partition(":")[2]) > 20 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], list(COMMANDS)),
        ([], list(COMMANDS)),
        (["fit", "--help"], ["--model.teacher", "A folder, a hub name", "--student_dir", "--trainer.precision"]),
    ],
    ids=["help", "nothing", "fit"],
)
def test_help(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], workplace: Path):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == (0 if arguments else 2)
    out = " ".join(capsys.readouterr().out.split())
    assert [word for word in words if word not in out] == []


LOADED = """
import json, sys
from lightning_distilbert.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted({"torch", "transformers", "pytorch_lightning", "numpy", "torchmetrics"} & set(sys.modules))))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], [], ["--version"], ["recipes"], ["recipes", "--help"], ["predict", "--help"], ["predict"], ["fitt"],
        ["fit", "--config", "recipes/nowhere.yaml"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_computes_nothing_loads_no_framework(arguments: list[str], tmp_path: Path):
    """Torch, transformers and Lightning take seconds to import."""
    command = [sys.executable, "-c", LOADED, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stdout.splitlines() + done.stderr.splitlines()) > 1


def test_version(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out == f"lightning-distilbert {lightning_distilbert.__version__}\n"


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistake_of_a_user_in_a_process_of_its_own(workplace: Path):
    done = run(*text_fit("--model.student.layers", "[0, 99]"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error:")
    assert "99" in last
    assert not (workplace / "student").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.teacher", "./nowhere"], "'./nowhere' does not exist"),
        (["--data.source", "./nowhere"], "nowhere"),
        (["--data.text", "words"], "has no column 'words'. Its columns are ['sentence', 'label']"),
        (["--model.warmup", "3"], "warmup=3.0"),
        (["--model.task.num_labels", "two"], "two"),
        (["--model.task.problem_type", "regression"], "Regression has one output, not num_labels=2"),
        (["--model.objectives", "everything"], "There are no objectives named 'everything'"),
        (["--model.objectives=[{class_path: SoftTargets, init_args: {temperature: -1}}]"], "given -1.0: it must be"),
        (["--model.student.rule", "sideways"], "rule was given sideways: it has to be 'uniform'"),
        (["--model.student.config", "{}"], "Student(config=...) builds a whole model"),
        (["--model.nonsense", "3"], "unrecognized arguments: --model.nonsense 3"),
        (["--trainer.precision", "13"], "precision was given 13: it has to be 64"),
        (["--config", "mine/nowhere.yaml"], "File does not exist"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--student_dir", "data"], "no config.json: it is no model folder"),
    ],
    ids=lambda value: value[0].lstrip("-") if isinstance(value, list) else "",
)
def test_mistake_is_one_line(arguments: list[str], message: str, capsys, workplace: Path):
    assert message in refused(capsys, *text_fit(*arguments))


def test_a_mistyped_monitor_is_told_before_training(capsys, workplace: Path):
    told = refused(capsys, *text_fit("--trainer.callbacks.monitor", "val/nothing"))
    assert "ModelCheckpoint watches 'val/nothing', and the check before training logged" in told
    assert "--trainer.callbacks.monitor val/accuracy" in told


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("data", "no config.json: it is no model folder"),
        ("data/train.tsv", "train.tsv' is a file. Give the name of a folder"),
        ("data/train.tsv/student", "train.tsv' is no folder that you may write to. Choose another --student_dir"),
    ],
)
def test_a_folder_that_could_not_be_written_is_refused_before_anything_else(
    folder: str, message: str, capsys, workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("models are built, and hours of training would follow")

    monkeypatch.setattr("lightning_distilbert.commands.training.DistillationCLI.instantiate_classes", never)
    assert message in refused(capsys, *text_fit("--student_dir", folder))


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_target(tmp_path / "new" / "student")
    # the super-user of a container may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DistillationError, match="no folder that you may write to"):
        check_target(tmp_path / "new" / "student")


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str], workplace: Path):
    message = refused(capsys, "fitt")
    assert "no command 'fitt'. Did you mean 'fit'?" in message
    assert all(name in message for name in COMMANDS)
    assert "Name a command: fit, validate" in refused(capsys)
