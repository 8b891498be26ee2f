"""Saved students and artefacts on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from lightning_distilbert.card.facts import read_facts
from lightning_distilbert.card.metadata import validate_repo_id
from lightning_distilbert.card.writing import is_ours, write_card
from lightning_distilbert.deploy.manifest import is_artefact
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import load_tokenizer

# checkpoints, and what an interrupted writer left
IGNORED = ("*.ckpt", "*.partial", "*.partial.json", ".*.lock", ".*.tmp/*")


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Send a saved student or an artefact to the hub, in one commit, after a look at whether it is whole.

    The repository is made where there is none. A model card that was written by `write_card`, or none, is written anew
    with the name of the repository; one of yours is sent as it is. Files that are already there stay, unless they are
    among those that are sent.

    Args:
        folder: The folder of the student or artefact.
        repo_id: ``"owner/name"``, or a name alone, of yours.
        private: Whether a repository that is made is private; None is what the owner's settings say.
        token: A token that may write; None takes that of ``hf auth login`` or of the environment's ``HF_TOKEN``.
        revision: The branch, which is made where there is none; None is ``main``.
        message: The first line of the commit.
        endpoint: The address of another hub; None is huggingface.co, or the environment's ``HF_ENDPOINT``.

    Returns:
        The address of the commit.

    Raises:
        DistillationError: If the folder is not whole, the name is none, there is no token or it may not write, or the
            hub cannot be reached or refuses.

    Example:
        >>> push_to_hub("/no/such/folder", "jane/student")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: There is no folder '/no/such/folder' ...
    """
    path = Path(folder).expanduser()
    kind = check_whole(path)
    _check_name(repo_id)
    token = token or get_token()
    if not token:
        raise DistillationError(
            "There is no token of the hub. Log in with: hf auth login; or set HF_TOKEN, or pass token=... "
            "(huggingface.co/settings/tokens makes one that may write)."
        )
    carded = is_ours(path)
    if carded:
        write_card(path, repo_id=repo_id)
    api = HfApi(endpoint=endpoint, token=token)
    where = f"{api.endpoint.rstrip('/')}/{repo_id}"
    try:
        name = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        if carded and name != repo_id:  # the hub knows whose token it is
            write_card(path, repo_id=name)
        if revision is not None and revision != constants.DEFAULT_REVISION:
            api.create_branch(name, branch=revision, exist_ok=True)
        done: Any = api.upload_folder(
            repo_id=name,
            folder_path=path,
            revision=revision,
            commit_message=message or f"{kind.capitalize()} of lightning_distilbert",
            ignore_patterns=list(IGNORED),
        )
    except DistillationError:
        raise
    except Exception as error:  # the hub's own errors, those of HTTP, and of what is between
        raise DistillationError(_explained(error, where)) from error
    return str(done.commit_url)


def check_whole(folder: str | Path) -> str:
    """Refuse a folder that nobody could load.

    Args:
        folder: The folder.

    Returns:
        ``"student"`` or ``"artefact"``.

    Raises:
        DistillationError: If it is neither: weights, tokenizer or config are missing, cut off or damaged, or the files
            of an artefact are not those that were exported.
    """
    path = Path(folder).expanduser()
    artefact = path.is_dir() and is_artefact(path)
    read_facts(path)  # of an artefact with the hashes of its files
    if artefact:
        return "artefact"
    load_tokenizer(path)
    return "student"


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DistillationError(
            f"{repo_id!r} is no name on the hub ({str(error).strip().splitlines()[0].rstrip('.')}). Give 'owner/name', "
            "of letters, digits, '-', '_' and '.'."
        ) from error


def _explained(error: BaseException, where: str) -> str:
    """Return in a sentence what went wrong, and what to do."""
    while not isinstance(error, (OfflineModeIsEnabled, HfHubHTTPError)) and error.__cause__ is not None:
        error = error.__cause__  # threads that upload wrap what happened
    said = " ".join(str(error).split())[:300] or "it said nothing"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{where}: the environment's HF_HUB_OFFLINE says that the hub is not to be asked. Unset it to push."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"{where}: the hub does not know this token. Log in anew with: hf auth login; or pass another."
        if status in (402, 403):
            return (
                f"{where}: this token may not write there. Make one that may (huggingface.co/settings/tokens), and "
                f"check the owner's name. The hub said: {said}"
            )
        return f"{where}: the hub refused ({said}). Nothing was committed."
    if isinstance(error, ValueError):
        return f"{where}: the hub refused what was sent ({said}). Nothing was committed."
    return (
        f"{where} could not be reached, or not to the end ({type(error).__name__}: {said}). Nothing was committed. "
        "Check the network, and try again."
    )
