"""Saved students brought back: the task, its thresholds and scores, and a module that predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_distilbert import doctor, evaluation, tasks
from lightning_distilbert.deploy.manifest import is_artefact
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import SENTENCE_BERT, SENTENCE_TRANSFORMERS, load_tokenizer, read_json, read_object
from lightning_distilbert.loading import check_folder, load_model, short
from lightning_distilbert.module import CHECKPOINT_KEY, DistillationModule
from lightning_distilbert.retrieval.search import SIMILARITIES
from lightning_distilbert.sentence_folder import (
    changed_texts,
    declared_pooling,
    sentence_modules,
)
from lightning_distilbert.spec import from_config
from lightning_distilbert.tasks.base import Task

Config = Mapping[str, Any]
# how the name of an architecture ends, and the auto class that such a model is loaded with
HEADS = {
    "EncoderDecoderModel": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "Model": "AutoModel",
}
UNSTATED_LENGTH = 512  # tokens of a translation by T5's kind, which was trained on as many


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    task: Task | type[Task] | None = None,
) -> DistillationModule:
    """Load a saved student with its task, ready to predict.

    `DistillationModule.save_student` writes the task into config.json. A folder of another making gets its task from
    its architecture: classification of texts or tokens, question answering, masked language modelling, translation for
    an encoder with a decoder (such as those of ``Helsinki-NLP/opus-mt``), reranking for a
    cross-encoder of sentence-transformers, or retrieval for any other folder of that library and a bare encoder.

    A folder may come from anyone: from its config only classes of this package are built, and code that comes with it
    does not run unless `trust_remote_code` is set.

    Args:
        path: The folder.
        device: Where to put the module.
        trust_remote_code: Whether code that comes with the model may run.
        task: The task, in place of the one that is found; or its class, which is built with the options of the one that
            is found. A task of your own has to be passed.

    Returns:
        The module in eval mode, without a teacher. To train it further, fit it, or give the folder to another
        `DistillationModule` as its ``student``.

    Raises:
        DistillationError: If there is no such folder, it holds no whole model, its config is damaged or names a class
            that is not of this package, the task and the head do not go together, or the device does not exist.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForMaskedLM, BertTokenizer
        >>> entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film"]
        >>> folder = tempfile.mkdtemp()
        >>> _ = BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}).save_pretrained(folder)
        >>> config = BertConfig(vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> BertForMaskedLM(config).save_pretrained(folder)
        >>> module = load(folder)
        >>> type(module.task).__name__, len(module.predict(["a [MASK]"])[0])
        ('MaskedLM', 5)
    """
    folder = Path(path).expanduser()
    config = read_config(folder)
    details = config.get(CHECKPOINT_KEY)
    if details is not None and not (isinstance(details, Mapping) and isinstance(details.get("task"), Mapping)):
        raise DistillationError(f"{folder / 'config.json'}: {CHECKPOINT_KEY!r} holds no task. Save the student again.")
    found = _find_task(folder, config, details, task)
    try:
        model = load_model(str(folder), found.auto_class, trust_remote_code, whole=True)
    except DistillationError as error:
        if trust_remote_code or "auto_map" not in config:
            raise
        raise DistillationError(
            f"{error} This one brings code along (auto_map): if you trust it, pass trust_remote_code=True."
        ) from error
    _check_labels(found, model.config, folder)
    if hasattr(model.config, CHECKPOINT_KEY):
        delattr(model.config, CHECKPOINT_KEY)  # it describes what is saved, and save_student writes it anew
    module = DistillationModule(task=found, student=model)
    module._tokenizer = _tokenizer(folder, trust_remote_code)
    found.read_files(module, folder)
    if details is not None:
        evaluation.restore(module, details)
        module._origin = {name: details[name] for name in ("teacher", "objectives", "task_weight") if name in details}
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise DistillationError(f"device={str(device)!r} cannot be used here: {short(error)}.") from error
    return module.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json.

    Args:
        folder: The folder.

    Raises:
        DistillationError: If there is no such folder, or it holds no model.

    Example:
        >>> read_config(Path("/no/such/folder"))
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: There is no folder '/no/such/folder' ...
    """
    if folder.suffix == ".ckpt" and folder.is_file():
        raise DistillationError(
            f"{str(folder)!r} is a checkpoint: DistillationModule.load_from_checkpoint loads it, and its save_student "
            "writes a folder for load."
        )
    if not folder.exists():
        raise DistillationError(
            f"There is no folder {str(folder)!r} (working folder: {Path.cwd()}). Give the folder of a saved student; a "
            "model on the hub is downloaded first, with huggingface_hub.snapshot_download(name), which returns one."
        )
    if is_artefact(folder) and not any(folder.glob("*.safetensors")):
        raise DistillationError(
            f"{str(folder)!r} is an artefact of lightning-distilbert export, without the student's weights: "
            "deploy.load_artefact makes a module of it, deploy.runtime.load runs it without torch, and the commands "
            "predict and serve take it."
        )
    check_folder(str(folder))
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise DistillationError(f"{folder / 'config.json'} holds no JSON object. Save the model again.")
    return config


def _find_task(folder: Path, config: Config, details: Config | None, given: Task | type[Task] | None) -> Task:
    if isinstance(given, Task):
        return given
    if given is not None and not (isinstance(given, type) and issubclass(given, Task)):
        raise DistillationError(f"task={given!r} is neither a task nor the class of one.")
    if given is not None:
        options = details["task"].get("init_args") if details else _task_of(folder, config).to_config()["init_args"]
        return _built(folder, lambda: given(**from_config(dict(options or {}), own_only=True)))
    if details is None:
        return _task_of(folder, config)
    class_path = str(details["task"].get("class_path"))
    if not class_path.startswith(f"{__package__}."):
        raise DistillationError(
            f"{folder / 'config.json'} names the task {class_path!r}, which is no class of this package, and a saved "
            f"folder does not decide what is imported. If you know it, pass it: load(path, task="
            f"{class_path.rpartition('.')[2]})."
        )
    found = _built(folder, lambda: from_config(details["task"], own_only=True))
    if not isinstance(found, Task):
        raise DistillationError(f"{folder / 'config.json'}: {class_path!r} is no task. Pass one: load(path, task=...).")
    head = _head(config)
    if head == "AutoModel" and head != found.auto_class:
        raise DistillationError(
            f"{str(folder)!r} holds an encoder without the head that {class_path.rpartition('.')[2]} needs: nothing "
            "trained one. Fine-tune it, as Student(source=...) of a DistillationModule, or take its sentence vectors: "
            "load(path, task=Retrieval())."
        )
    if head is not None and head != found.auto_class:
        raise DistillationError(
            f"{folder / 'config.json'} names the task {class_path.rpartition('.')[2]}, which needs an "
            f"{found.auto_class}, and the model is a {_architecture(config)}. Save the student again, or pass the task "
            "that fits: load(path, task=...)."
        )
    return found


def _built(folder: Path, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise DistillationError(
            f"The task that {folder / 'config.json'} describes cannot be built: {str(error).rstrip('.')}. To "
            "choose one yourself: load(path, task=...)."
        ) from error


def _architecture(config: Config) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _head(config: Config) -> str | None:
    named = _architecture(config)
    if named.endswith("HeadModel"):  # such as BertLMHeadModel, which is no bare encoder
        return None
    return next((auto_class for ending, auto_class in HEADS.items() if named.endswith(ending)), None)


def _task_of(folder: Path, config: Config) -> Task:
    """Return the task that the architecture of a folder of another making suggests."""
    head = "AutoModel" if "Pooling" in sentence_modules(folder) else _head(config)
    if head is None:
        raise DistillationError(
            f"{folder / 'config.json'} names no task of this package, and its architecture "
            f"{_architecture(config) or None!r} suggests none (known are names that end in {', '.join(HEADS)}). "
            "Pass one: load(path, task=...)."
        )
    return _built(folder, lambda: TASKS[head](folder, config))


def _labels(config: Config) -> tuple[int, list[str] | None]:
    """Return the number of labels, two where nothing says it as transformers has it, and their names."""
    id2label = config.get("id2label")
    names = id2label if isinstance(id2label, Mapping) else {}
    return int(config.get("num_labels") or len(names) or 2), doctor.label_names(SimpleNamespace(id2label=names))


def _text_classification(folder: Path, config: Config) -> Task:
    number, names = _labels(config)
    if number == 1 and _is_cross_encoder(folder, config):
        return tasks.Reranking()
    kind: Any = config.get("problem_type") or ("single_label_classification" if number > 1 else "regression")
    return tasks.TextClassification(number, None if kind == "regression" else names, kind)


def _is_cross_encoder(folder: Path, config: Config) -> bool:
    """Tell whether a folder is a CrossEncoder of sentence-transformers, of version 5, 4 or before."""
    library = read_object(folder / SENTENCE_TRANSFORMERS)
    traces = ("sentence_transformers", "sbert_ce_default_activation_function")
    return library.get("model_type") == "CrossEncoder" or any(name in config for name in traces)


def _retrieval(folder: Path, config: Config) -> Task:
    modules = sentence_modules(folder)
    unknown = [kind for kind in modules if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise DistillationError(
            f"{folder / 'modules.json'} lists a {unknown[0]}, which Retrieval does not compute: its vectors would be "
            "others than those of sentence-transformers."
        )
    if (change := changed_texts(folder)) is not None:
        raise DistillationError(
            f"{change}, and Retrieval takes texts as they are: its vectors would be others than those of "
            "sentence-transformers. Change the texts yourself, and say so: "
            "load(path, task=Retrieval(pooling=..., normalize=...))."
        )
    pooling: Any = declared_pooling(folder) or "mean"
    normalize = not modules or "Normalize" in modules
    return tasks.Retrieval(pooling, normalize=normalize, similarity=_similarity(folder))


def _similarity(folder: Path) -> Any:
    """Return by what a folder's vectors are compared: the cosine where sentence-transformers names nothing."""
    named = read_object(folder / SENTENCE_TRANSFORMERS).get("similarity_fn_name") or "cosine"
    if named in SIMILARITIES:
        return named
    rank_zero_warn(
        f"{folder / SENTENCE_TRANSFORMERS} compares vectors by {named!r}, which is not computed here: the vectors are "
        "the same, but metrics and searches take the cosine."
    )
    return "cosine"


def _token_classification(folder: Path, config: Config) -> Task:
    number, names = _labels(config)
    return tasks.TokenClassification(number, names)


def _translation(folder: Path, config: Config) -> Task:
    # without a table of positions nothing ends a translation in which the decoder finds no end
    stated = (config.get("decoder") or config).get("max_position_embeddings")
    return tasks.Translation(max_length=None if stated else UNSTATED_LENGTH)


TASKS: dict[str, Callable[[Path, Config], Task]] = {
    "AutoModelForSequenceClassification": _text_classification,
    "AutoModelForTokenClassification": _token_classification,
    "AutoModelForQuestionAnswering": lambda folder, config: tasks.QuestionAnswering(),
    "AutoModelForMaskedLM": lambda folder, config: tasks.MaskedLM(),
    "AutoModelForSeq2SeqLM": _translation,
    "AutoModel": _retrieval,
}


def _check_labels(task: Task, config: Any, folder: Path) -> None:
    number, names = getattr(task, "num_labels", None), doctor.label_names(config)
    if number is not None and number != config.num_labels:
        raise DistillationError(
            f"{type(task).__name__} has {number} labels, and the head in {str(folder)!r} {config.num_labels} outputs."
        )
    if task.labels and names and [*map(str.casefold, task.labels)] != [*map(str.casefold, names)]:
        raise DistillationError(
            f"{type(task).__name__} names the labels {list(task.labels)}, and the head in {str(folder)!r} {names}: its "
            "answers would be called by the wrong names."
        )


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    tokenizer = load_tokenizer(folder, trust_remote_code)
    limit = read_object(folder / SENTENCE_BERT).get("max_seq_length")
    if isinstance(limit, int):  # sentence-transformers cuts texts there, which its vectors show
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer
