"""`lightning-distilbert card` and `push` as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from lightning_distilbert import hub
from lightning_distilbert.cli import main
from tests.hub import TOKEN, running
from tests.students import save_classifier


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_classifier(tmp_path / "made").rename("student")
    return tmp_path


def test_card_takes_its_options(workplace: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--license", "mit", "--language", "en", "de", "--datasets", "a/b", "--base_model", "google-bert/bert"]
    main(["card", "--model", "student", *options, "--metrics", "test/accuracy=0.5", "mcc=0.25", "--name", "Films"])
    assert capsys.readouterr().out.strip() == "student/README.md"
    text = Path("student/README.md").read_text()
    found = yaml.safe_load(text.split("---\n")[1])
    assert (found["license"], found["language"], found["datasets"]) == ("mit", ["en", "de"], ["a/b"])
    assert found["base_model"] == "google-bert/bert"
    assert [one["value"] for one in found["model-index"][0]["results"][0]["metrics"]] == [0.5, 0.25]
    assert "# Films\n" in text


def test_push_prints_the_commit(workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "get_token", lambda: TOKEN)
    with running() as server:
        options = ["--private", "--revision", "try", "--message", "Films", "--endpoint", server.address]
        with pytest.warns(DeprecationWarning, match="Use 'content="):  # of huggingface_hub 2.4's own
            main(["push", "--model", "student", "--repo", "jane/films", *options])
    assert server.private == {"jane/films": "private"}
    (commit,) = server.commits
    assert (commit["revision"], commit["message"]) == ("try", "Films")
    assert capsys.readouterr().out.strip() == f"{server.address}/jane/films/commit/{commit['oid']}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card", "--model", "nothing"], "There is no folder 'nothing'"),
        (["card"], "required: --model"),
        (["card", "--model", "student", "--metrics", "accuracy"], "there is no '='"),
        (["card", "--model", "student", "--metrics", "accuracy=high"], "'high' is no number"),
        (["card", "--model", "student", "--metrics", "accuracy=nan"], "a model card states numbers"),
        (["card", "--model", "student", "--licence", "mti"], "Did you mean 'mit'?"),
        (["push", "--model", "student"], "required: --repo"),
        (["push", "--model", "nothing", "--repo", "jane/films"], "There is no folder 'nothing'"),
        (["push", "--model", "student", "--repo", "a/b/c"], "is no name on the hub"),
        (["push", "--model", "student", "--repo", "jane/films"], "hf auth login"),
    ],
)
def test_mistakes_are_one_line(
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error:")
    assert message in err
