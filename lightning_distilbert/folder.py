"""Student folders: plain transformers (and sentence-transformers) folders that need nothing of this package."""

from __future__ import annotations

import fnmatch
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from torch import nn
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DistilBertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distilbert.architectures import backbone, unwrap
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.loading import quiet
from lightning_distilbert.placing import placed
from lightning_distilbert.spec import to_plain

Pooling = Literal["mean", "cls"]
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
SENTENCE_BERT = "sentence_bert_config.json"
# RoBERTa's kind counts positions from pad_token_id + 1, so that many rows of its table are never used (a rotary ESM has
# no table, and was trained on as many tokens fewer all the same)
OFFSET_POSITIONS = (
    "roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl",
    "data2vec-text", "ibert", "xmod", "luke", "lilt", "layoutlmv3", "markuplm", "esm",
)  # fmt: skip
# tokens of a text where nothing limits them: far less than the 1e30 of a tokenizer that states no length, which is
# more than its backend counts to
NO_LIMIT = 2**20
# traces of how a tokenizer was loaded and last called; a call's truncation in a file would cut other people's texts
CALL_TRACES = (
    "is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of",
    "pad_token_type_id", "vocab_file", "tokenizer_file", "name_or_path",
)  # fmt: skip
# what belongs to a saved model and is replaced with it; all else in a folder is the user's
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.model", "chat_template*", "modules.json", SENTENCE_BERT,
    SENTENCE_TRANSFORMERS, "1_Pooling", "2_Normalize", "target_tokenizer",
)  # fmt: skip


def load_tokenizer(source: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or from the hub.

    Args:
        source: A folder or a hub name.
        trust_remote_code: Whether code that comes with the tokenizer may run.

    Returns:
        The tokenizer.

    Raises:
        DistillationError: If it cannot be loaded.

    Example:
        >>> load_tokenizer("/no/such/folder")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: The tokenizer folder '/no/such/folder' does not exist. ...
    """
    name = os.path.expanduser(str(source))
    if not os.path.exists(name) and (os.path.isabs(name) or name.startswith(".")):
        raise DistillationError(f"The tokenizer folder {name!r} does not exist. Check the path.")
    if os.path.isdir(name) and not any(os.path.isfile(os.path.join(name, file)) for file in _TOKENIZER_FILES):
        # transformers would return an empty tokenizer that knows special tokens only
        raise DistillationError(
            f"The folder {name!r} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). "
            "Save one there with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exception
        raise DistillationError(
            f"The tokenizer {name!r} could not be loaded ({type(error).__name__}: {str(error).strip()[:300]}). "
            "Give a folder with tokenizer.json, or the name of a model on the hub."
        ) from error


_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip


def student_tokenizer(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> PreTrainedTokenizerBase:
    """Give a DistilBERT student a tokenizer that sends no ``token_type_ids``.

    AutoTokenizer of transformers 5 loads a ``BertTokenizer`` for a DistilBERT folder unless tokenizer_config.json names
    another class, and an attribute such as ``model_input_names`` is not saved.

    Args:
        tokenizer: The teacher's tokenizer. It is not changed.
        model: The student.

    Returns:
        For a DistilBERT and a ``BertTokenizer`` a `DistilBertTokenizer` with the same ids for every text and a
        ``model_max_length`` that the model's positions allow; otherwise the tokenizer itself.

    Raises:
        DistillationError: If the tokenizer was changed in a way that its class does not save.
    """
    student = _transformers_model(model)
    if _reader(student.config).model_type != "distilbert" or not isinstance(tokenizer, BertTokenizer):
        return tokenizer
    if isinstance(tokenizer, DistilBertTokenizer):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(tokenizer, Path(folder), max_tokens(tokenizer, student))
        converted = DistilBertTokenizer.from_pretrained(folder)
    converted.name_or_path = tokenizer.name_or_path
    before, after = (_rules(item) for item in (tokenizer, converted))
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise DistillationError(
            f"The {type(tokenizer).__name__} has its own {', '.join(changed)}, which no DistilBertTokenizer keeps when "
            "it is loaded again. Set do_lower_case, strip_accents and tokenize_chinese_chars instead, or use "
            "architecture='same'."
        )
    return converted


def _transformers_model(model: nn.Module) -> PreTrainedModel:
    model = unwrap(model)
    if isinstance(model, PreTrainedModel):
        return model
    raise DistillationError(
        f"A {type(model).__name__} is no transformers model, and cannot be saved as a folder of one. "
        "Save the transformers model that it holds."
    )


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: rules[name] for name in ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")}


def max_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Return how many tokens both a tokenizer and a model's positions allow.

    Args:
        tokenizer: The tokenizer.
        model: The model.
    """
    return min(int(tokenizer.model_max_length), max_positions(model.config))


def max_positions(config: Any) -> int:
    """Return how many tokens a model has positions for; one without a table of them as good as any number.

    Args:
        config: The model's config; of a model that translates the encoder's part counts.

    Example:
        >>> from transformers import BertConfig, RobertaConfig, T5Config
        >>> max_positions(BertConfig()), max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
        (512, 512)
        >>> max_positions(T5Config()) == NO_LIMIT
        True
    """
    config = _reader(config)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return NO_LIMIT
    return positions - unused_positions(getattr(config, "model_type", None), getattr(config, "pad_token_id", None))


def unused_positions(model_type: str | None, pad_token_id: Any) -> int:
    """Return how many rows of a model's table of positions are never used: RoBERTa's kind counts from padding + 1.

    Args:
        model_type: The model's type, as its config names it.
        pad_token_id: Its padding token.

    Example:
        >>> unused_positions("roberta", 1), unused_positions("bert", 0)
        (2, 0)
    """
    return int(pad_token_id) + 1 if model_type in OFFSET_POSITIONS else 0


def _reader(config: Any) -> Any:
    """Return the config of the part that reads the text: of a model that translates that of its encoder."""
    return config.encoder if getattr(config, "model_type", None) == "encoder-decoder" else config


def save_student(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    pooling: Pooling | None = None,
    normalize: bool = True,
    max_length: int | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Save a student as a folder that transformers loads by itself.

    The folder is written beside its place and then moved there, so that no half-written one can be found. A model
    folder that is already there is replaced; files in it that belong to no model are kept.

    Args:
        model: The student; neither its weights, device, dtype nor mode change.
        tokenizer: Its tokenizer; for a DistilBERT a ``BertTokenizer`` is converted by `student_tokenizer`.
        path: The folder to write.
        pooling: How a sentence embedding is made of the token vectors; with it sentence-transformers loads the folder.
        normalize: Whether sentence embeddings have length one; used with ``pooling``.
        max_length: The longest input in tokens; None is what tokenizer and positions allow.
        details: Plain values to keep under the key ``lightning_distilbert`` of config.json.
        overwrite: Whether a folder that is there may be replaced.
        beside: Writes what else belongs to the model, into the folder that it is given, when all else is there.

    Returns:
        The folder.

    Raises:
        DistillationError: If the folder cannot be written, may not be replaced or holds no model, if ``max_length`` is
            more than the model takes, if ``pooling`` is given for a model with a task head, or if the model is no
            transformers model.
    """
    student = _transformers_model(model)
    tokenizer = student_tokenizer(tokenizer, student)
    _check_pooling(student, pooling)
    longest = max_tokens(tokenizer, student)
    if max_length is not None and not 1 <= max_length <= longest:
        raise DistillationError(f"max_length={max_length} is out of range: tokenizer and model take 1 to {longest}.")
    extra = None if details is None else to_plain(details, "save_student(details=...)")
    # a link stays a link: what it points to is replaced
    target = Path(path).expanduser().resolve()
    _check_target(target, overwrite)
    with quiet(), placed(target, "model folder", carried=_is_users) as folder:
        student.save_pretrained(folder)
        _write_tokenizer(tokenizer, folder, max_length or longest)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("fresh_head", None)  # it spoke of the student as it was built
        _write_json(folder / "config.json", config if extra is None else config | {"lightning_distilbert": extra})
        if pooling is not None:
            _write_sentence_transformers(folder, pooling, normalize, max_length or longest, student.config.hidden_size)
        if beside is not None:
            beside(folder)
    return target


def _check_pooling(model: PreTrainedModel, pooling: str | None) -> None:
    if pooling is None:
        return
    check_choice("save_student(pooling=...)", pooling, get_args(Pooling))
    if backbone(model) is not model:
        raise DistillationError(
            f"pooling={pooling!r} is for sentence encoders, and {type(model).__name__} has a task head. "
            "Leave pooling out, or save its backbone."
        )


def _is_users(name: str) -> bool:
    return not any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILES)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise DistillationError(f"{str(target)!r} is a file. Give the name of a folder.")
    inside = sorted(item.name for item in target.iterdir())
    if inside and not overwrite:
        raise DistillationError(f"The folder {str(target)!r} is not empty. Choose another, or pass overwrite=True.")
    if inside and "config.json" not in inside:
        raise DistillationError(
            f"The folder {str(target)!r} holds {', '.join(inside[:3])} and no config.json: it is no model folder, and "
            "is not replaced. Choose a new or an empty folder."
        )


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds; None if there is none.

    Args:
        path: The file.

    Raises:
        DistillationError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:  # not JSON, or not UTF-8
        raise DistillationError(f"{path} cannot be read: {error}. Save the model again.") from error


def read_object(path: Path | None) -> Mapping[str, Any]:
    """Return the JSON object that a file holds; an empty one if there is none.

    Args:
        path: The file, or None.

    Raises:
        DistillationError: If it is not JSON.
    """
    value = None if path is None else read_json(path)
    return value if isinstance(value, Mapping) else {}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int | None = None) -> None:
    tokenizer.save_pretrained(folder)
    config_file, rules_file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if name not in CALL_TRACES}
    if max_length is not None:
        config["model_max_length"] = max_length
    _write_json(config_file, config)
    if not rules_file.exists():
        return
    rules = json.loads(rules_file.read_text(encoding="utf-8"))
    rules_file.write_text(
        json.dumps(rules | {"truncation": None, "padding": None}, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    if rules["model"].get("type") == "WordPiece":
        tokens = sorted(rules["model"]["vocab"].items(), key=lambda item: item[1])
        # a line's number is its id, so that a vocabulary with gaps cannot be written this way
        if [index for _, index in tokens] == list(range(len(tokens))):
            (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")


def _write_sentence_transformers(folder: Path, pooling: str, normalize: bool, max_length: int, width: int) -> None:
    """Write the layout that every sentence-transformers since 2.0 reads."""
    kinds = ["Transformer", "Pooling", "Normalize"] if normalize else ["Transformer", "Pooling"]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / SENTENCE_BERT, {"max_seq_length": max_length, "do_lower_case": False})
    for path in paths[1:]:
        (folder / path).mkdir()
    pooling_config: dict[str, Any] = {"word_embedding_dimension": width}
    for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"):
        pooling_config[f"pooling_mode_{mode}"] = mode.startswith(pooling) and "sqrt" not in mode
    _write_json(folder / "1_Pooling" / "config.json", pooling_config)
    if normalize:
        # an empty folder would be lost by git and by the hub
        names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        _write_json(folder / "2_Normalize" / "config.json", names)
    # the version that brought this layout; a newer one than the reader's own would make it warn
    versions = {
        "sentence_transformers": "2.0.0",
        "transformers": transformers.__version__,
        "pytorch": str(torch.__version__),
    }
    _write_json(
        folder / SENTENCE_TRANSFORMERS,
        {"__version__": versions, "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the files of a tokenizer as text, for a checkpoint that must hold plain values.

    Args:
        tokenizer: The tokenizer.

    Returns:
        A map of file names to file contents.

    Raises:
        DistillationError: If the tokenizer has no tokenizer.json and a binary file.
    """
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(tokenizer, Path(folder))
        for file in sorted(Path(folder).iterdir()):
            # vocab.txt repeats tokenizer.json
            if file.is_file() and file.name != "vocab.txt":
                try:
                    files[file.name] = file.read_text(encoding="utf-8")
                except UnicodeDecodeError as error:
                    raise DistillationError(
                        f"The {type(tokenizer).__name__} is saved in a binary file, {file.name!r}, which a checkpoint "
                        "cannot hold as text. Use its fast tokenizer."
                    ) from error
    return files


def tokenizer_from_files(files: Mapping[str, str]) -> PreTrainedTokenizerBase:
    """Build the tokenizer that `tokenizer_files` described.

    Args:
        files: A map of file names to file contents.

    Returns:
        A tokenizer of the same class with the same ids.

    Raises:
        DistillationError: If a name is more than a file name, or the files are no tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            # a checkpoint may come from anyone: it may not write outside this folder
            if name != os.path.basename(name) or name in ("", ".", ".."):
                raise DistillationError(f"{name!r} is not a plain file name; the checkpoint is damaged or not ours.")
            (Path(folder) / name).write_text(text, encoding="utf-8", newline="")
        tokenizer = load_tokenizer(folder)
    tokenizer.name_or_path = ""  # the folder is gone
    return tokenizer
