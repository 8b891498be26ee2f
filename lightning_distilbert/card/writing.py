"""Writing the card: where there is none, or one that was written here before."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from lightning_distilbert.card.facts import Facts, read_facts
from lightning_distilbert.card.metadata import card_data
from lightning_distilbert.card.text import body
from lightning_distilbert.data.writers import complete
from lightning_distilbert.deploy.manifest import MANIFEST, is_artefact
from lightning_distilbert.errors import DistillationError

CARD = "README.md"
COMPARISON = "comparison.json"
MARK = re.compile(r"<!-- lightning_distilbert wrote this card.*?\n(\{.*?\})\n-->", re.DOTALL)
TABLE = re.compile(r"<!-- comparison:begin -->\n(.*?)\n<!-- comparison:end -->", re.DOTALL)
ALWAYS = ("licence", "licence_link", "language", "name", "repo_id")  # true of the next training in this folder as well


def write_card(
    folder: str | Path,
    *,
    licence: str | None = None,
    licence_link: str | None = None,
    datasets: str | Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
    base_model: str | Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
    comparison: Any = None,
    name: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write the README.md of a saved student or an artefact, from what its folder says.

    A card that was written here before is replaced. What was given then and not now stays: of the same training all of
    it, of another one licence, language and names. A README.md of yours is never replaced.

    Args:
        folder: The folder of a saved student, of another model that `lightning_distilbert.load` loads, or of an
            artefact of `lightning_distilbert.deploy.export`.
        licence: The hub's identifier of its licence, such as ``"apache-2.0"``; None says nothing of it.
        licence_link: For a licence that the hub does not know: where its text is, an address or a file in the folder.
        datasets: Names on the hub of its training data; None takes those that the training noted.
        language: ISO 639 codes of the language that it was trained for.
        base_model: The name on the hub of the model that it started as; None takes what the training noted.
        metrics: Further scores, such as ``{"test/accuracy": 0.9}``.
        comparison: What ``lightning-distilbert compare`` wrote: the file, or a `Comparison`. None takes
            comparison.json in the folder, unless it is older than the weights.
        name: The title; None is the name of the folder or repository.
        repo_id: Its name on the hub, which the code of the card then uses.

    Returns:
        The card.

    Raises:
        DistillationError: If the folder holds no whole model, an option is bad, a score is no number, a card of yours
            is there or one whose comment is damaged, or it cannot be written.

    Example:
        >>> write_card("/no/such/folder")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: There is no folder '/no/such/folder' ...
    """
    path = Path(folder).expanduser() / CARD
    old = _read(path)
    found = None if old is None else MARK.search(old)
    if old is not None and found is None:
        raise DistillationError(
            f"{str(path)!r} was not written by lightning_distilbert, and is not replaced. Move it away to have a card "
            "written, or add to it by hand what you need."
        )
    told: dict[str, Any] = {
        "licence": licence,
        "licence_link": licence_link,
        "datasets": datasets,
        "language": language,
        "base_model": base_model,
        "metrics": None if metrics is None else dict(metrics),
        "name": name,
        "repo_id": repo_id,
    }
    given = {key: value for key, value in told.items() if value is not None}
    kept = _kept(found[1], path) if found else {}
    facts = read_facts(path.parent, metrics)
    same = kept.pop("of", None) == facts.fingerprint
    kept = {key: value for key, value in kept.items() if key in told and (same or key in ALWAYS)}
    if licence is not None:
        kept.pop("licence_link", None)  # that of the licence before
    given = kept | given
    if "metrics" in given and metrics is None:
        facts = read_facts(path.parent, given["metrics"])
    table = _table(facts, comparison)
    if table is None and same and old and (before := TABLE.search(old)):
        table = before[1]
    _write(path, render(facts, given, table))
    return path


def render(facts: Facts, given: Mapping[str, Any], table: str | None = None) -> str:
    """Return a card.

    Args:
        facts: What the folder says.
        given: What the user said, by the names of `write_card`.
        table: A comparison, in Markdown.

    Raises:
        DistillationError: If something that was given is not what the hub knows under that key.
    """
    place, repo = facts.folder.absolute().name or "student", given.get("repo_id")
    name = str(given.get("name") or str(repo or place).rpartition("/")[2])
    data = card_data(facts, name, given)
    if table is not None:
        table = f"<!-- comparison:begin -->\n{table.strip()}\n<!-- comparison:end -->"
    mark = json.dumps({**given, "of": facts.fingerprint}, ensure_ascii=True, default=list).replace("-->", "--\\u003e")
    text = (
        f"---\n{data.to_yaml()}\n---\n\n"
        "<!-- lightning_distilbert wrote this card, and writes it again when the model is saved again. To make it "
        f"yours, delete this comment.\n{mark}\n-->\n\n{body(facts, name, place, repo, given, table)}"
    )
    return str(ModelCard(text))


def is_ours(folder: str | Path) -> bool:
    """Tell whether a folder has no card, or one that may be written again.

    Args:
        folder: The folder.
    """
    text = _read(Path(folder).expanduser() / CARD)
    return text is None or MARK.search(text) is not None


def try_card(folder: Path) -> Path:
    """Write a card beside a student that was just saved; whatever goes wrong with it is a warning.

    Args:
        folder: The folder of the student.

    Returns:
        The folder.
    """
    try:
        if is_ours(folder):
            write_card(folder)
    except Exception as error:  # hours of training are not to end with an error about their description
        warnings.warn(
            f"The student is saved in {str(folder)!r}, and its model card could not be written: "
            f"{' '.join(str(error).split())[:300]} Try again with: lightning-distilbert card --model {folder}",
            UserWarning,
            stacklevel=2,
        )
    return folder


def _table(facts: Facts, comparison: Any) -> str | None:
    """Return a comparison in Markdown, read from its file if it is one."""
    if comparison is None:
        path = facts.folder / COMPARISON
        if not path.is_file() or path.stat().st_mtime < newest_weights(facts.folder):
            return None
        comparison = path
    if isinstance(comparison, (str, Path)):
        from lightning_distilbert.report.compared import Comparison  # what it is drawn with takes a while to load

        comparison = Comparison.read(comparison)
    if comparison.task != facts.task_name:
        raise DistillationError(
            f"The comparison is of models for {comparison.task}, and this one is for {facts.task_name}. Give one that "
            "it takes part in."
        )
    return str(comparison.to_markdown())


def newest_weights(folder: Path) -> float:
    """Return when the weights of a folder were written; of an artefact its manifest, which is written last."""
    files = [folder / MANIFEST] if is_artefact(folder) else folder.glob("*.safetensors")
    return max(file.stat().st_mtime for file in files)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig") if path.is_file() else None
    except (OSError, ValueError) as error:
        raise DistillationError(
            f"{str(path)!r} cannot be read ({error}). Move it away to have a card written."
        ) from error


def _kept(comment: str, path: Path) -> dict[str, Any]:
    """Return what the comment of a card keeps."""
    try:
        kept: dict[str, Any] = json.loads(comment)
    except ValueError as error:
        raise DistillationError(
            f"The comment of lightning_distilbert in {str(path)!r} was changed, and cannot be read ({error}). Delete "
            "the comment to make the card yours, or the file to have it written anew."
        ) from error
    return kept


def _write(path: Path, text: str) -> None:
    try:
        with complete(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DistillationError(
            f"The card {str(path)!r} could not be written ({error}). Choose a folder that you may write to, on a disk "
            "with room."
        ) from error
