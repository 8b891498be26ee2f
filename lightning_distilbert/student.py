"""How a student is made: cut out of a teacher, loaded as it is, or built from a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from lightning_distilbert import doctor
from lightning_distilbert.architectures import backbone, layers_of, unwrap
from lightning_distilbert.conversion import (
    check_convertible,
    check_epsilon,
    distilbert_config,
    distilbert_head,
    distilbert_state,
)
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.loading import building, load_model, model_class, short
from lightning_distilbert.mapping import Rule, layer_choice
from lightning_distilbert.narrow import Narrowing
from lightning_distilbert.spec import Spec

Architecture = Literal["auto", "distilbert", "same"]
# what belongs to one saved model and must not travel into another model's config
PROVENANCE = ("initialised_from", "initialised_depth", "fresh_head", "lightning_distilbert")
# config values that say what `build_student` has an argument for
SIZE_ARGUMENTS = {
    "num_hidden_layers": "layers",
    "n_layers": "layers",
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}


class Student(Spec):
    """A student described by plain values.

    Without ``source`` it is cut out of the teacher. With a ``source`` alone that model is loaded as it is (such as
    ``distilbert-base-uncased``); with a ``source`` and ``layers`` it is cut out of that model, for instance the
    pretrained model that the teacher was fine-tuned from. With a ``config`` it is built with random weights, for a
    checkpoint that brings the weights itself.

    Args:
        layers: How many layers, or which ones. None is half of the teacher's, as in DistilBERT, or all of a ``source``.
        architecture: ``"distilbert"`` turns BERT, RoBERTa and ELECTRA layers into DistilBERT layers; ``"same"`` keeps
            the architecture; ``"auto"`` is the first for a BERT and the second for all others.
        rule: How a number of layers is chosen: see `layer_choice`.
        source: A folder or a hub name.
        config: A transformers config as a plain dict with its ``model_type``.
        trust_remote_code: Whether code that comes with a model may run.
        hidden_size: The width of a narrower student; None keeps the teacher's. See `Narrowing` for what is kept.
        num_attention_heads: Its heads, which must divide its width; None keeps their number.
        intermediate_size: The neurons of its feed-forward parts; None keeps their number.
        dropout: The share of values that every dropout of the student drops in training; None keeps the teacher's.
        attn_implementation: transformers' name for how attention is computed, such as ``"eager"`` or ``"sdpa"``; None
            is transformers' choice. On a CPU in bfloat16 ``"eager"`` trains faster: see docs/performance.md.

    Raises:
        DistillationError: If the arguments contradict each other or a name is unknown.

    Example:
        >>> Student(layers=6).to_config()["init_args"]
        {'layers': 6}
    """

    def __init__(
        self,
        layers: int | list[int] | None = None,
        architecture: Architecture = "auto",
        rule: Rule = "uniform",
        source: str | None = None,
        config: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        hidden_size: int | None = None,
        num_attention_heads: int | None = None,
        intermediate_size: int | None = None,
        dropout: float | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        check_choice("Student(architecture=...)", architecture, get_args(Architecture))
        check_choice("Student(rule=...)", rule, get_args(Rule))
        sizes = {
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
        }
        narrower = [name for name, size in sizes.items() if size is not None]
        if config is not None and (source is not None or layers is not None or narrower):
            raise DistillationError(
                f"Student(config=...) builds a whole model. Leave out {', '.join(['source', 'layers', *narrower])} "
                "with it."
            )
        cuts = [*narrower, *["architecture"] * (architecture == "distilbert"), *["rule"] * (rule != "uniform")]
        if source is not None and layers is None and cuts:
            raise DistillationError(
                f"Student(source={str(source)!r}) without layers loads that model as it is, so that "
                f"{', '.join(cuts)} would have no effect. Say how many layers to cut out of it."
            )
        self.layers = layers
        self.architecture: Architecture = architecture
        self.rule: Rule = rule
        self.source = source
        self.config = config
        self.trust_remote_code = trust_remote_code
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.dropout = _checked_dropout(dropout)
        self.attn_implementation = attn_implementation

    def build(
        self,
        teacher: str | Path | nn.Module | None = None,
        auto_class: str = "AutoModel",
        **config_overrides: Any,
    ) -> PreTrainedModel:
        """Build the student model.

        Args:
            teacher: The teacher, or where it lies. Not needed with ``source`` or ``config``.
            auto_class: The transformers auto class that the student is of, such as
                ``"AutoModelForSequenceClassification"``.
            **config_overrides: Config values of the student, such as ``num_labels`` and ``id2label``.

        Returns:
            A plain transformers model in float32 on the CPU, in train mode.

        Raises:
            DistillationError: If there is nothing to build it from, or for the reasons of `build_student`.
        """
        model = self._build(teacher, auto_class, config_overrides)
        if self.attn_implementation is not None:
            try:
                model.set_attn_implementation(self.attn_implementation)
            except (ValueError, ImportError) as error:  # unknown, of another architecture, or a package that is missing
                raise DistillationError(
                    f"Student(attn_implementation={self.attn_implementation!r}) is not to be had for "
                    f"{type(model).__name__}: {' '.join(str(error).split())}"
                ) from error
        return model

    def _build(
        self, teacher: str | Path | nn.Module | None, auto_class: str, config_overrides: dict[str, Any]
    ) -> PreTrainedModel:
        if self.config is not None:
            with building():
                config = _config_from(self.config, config_overrides, self.dropout)
                # of a checkpoint it says itself whether the head that it brings is trained
                return _finish(_new_model(config, auto_class), self.config.get("fresh_head", True))
        if self.source is not None and self.layers is None:
            return _load_as_it_is(self.source, auto_class, self.trust_remote_code, config_overrides, self.dropout)
        origin = teacher if self.source is None else self.source
        if origin is None:
            raise DistillationError(
                "This student is cut out of its teacher, and there is none. Pass a teacher, or Student(source=...)."
            )
        return build_student(
            origin,
            layers=self.layers,
            architecture=self.architecture,
            rule=self.rule,
            auto_class=auto_class,
            trust_remote_code=self.trust_remote_code,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            dropout=self.dropout,
            **config_overrides,
        )


def build_student(
    teacher: str | Path | nn.Module,
    layers: int | list[int] | None = None,
    architecture: Architecture = "auto",
    rule: Rule = "uniform",
    auto_class: str = "AutoModel",
    *,
    trust_remote_code: bool = False,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    dropout: float | None = None,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Cut a student with fewer layers, and if asked narrower ones, out of a teacher.

    All weights outside the layers are copied, and of the layers the chosen ones. Into a DistilBERT the embedding of
    token type 0 is added to each position embedding, because DistilBERT has no token types; the word embeddings stay
    as they are, since a masked-language head is tied to them. RoBERTa's unused first positions are left out. In eval
    mode the hidden states of a student as wide as its teacher then equal those of the teacher with the same layers
    alone (of a ModernBERT without its first layer, nearly). A task head is copied if teacher and student are of the
    same task with the same labels, in whatever order; any other head starts fresh.

    Args:
        teacher: A transformers model, a folder, or a hub name. It is not changed.
        layers: How many layers, or which ones; None is half of them, at least one.
        architecture: ``"auto"``, ``"distilbert"`` (of a BERT, RoBERTa, ELECTRA or DistilBERT) or ``"same"``.
        rule: How a number of layers is chosen: see `layer_choice`.
        auto_class: The transformers auto class of the student.
        trust_remote_code: Whether code that comes with the teacher may run.
        hidden_size: The student's width; None keeps the teacher's. See `Narrowing` for what is kept.
        num_attention_heads: The student's heads; None keeps their number.
        intermediate_size: The neurons of the student's feed-forward parts; None keeps their number.
        dropout: The share of values that every dropout of the student drops in training; None keeps the teacher's.
        **config_overrides: Config values of the student; unknown names are refused.

    Returns:
        A plain transformers model in float32 on the CPU, in train mode; ``config.initialised_from`` lists the chosen
        layers, ``config.initialised_depth`` says of how many, and ``config.fresh_head`` whether its head is random or
        cut out of a wider one.

    Raises:
        DistillationError: If the teacher cannot be loaded or lacks weights, the layers or sizes are out of range, the
            architecture cannot be reached from this teacher, or a config value is unknown.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=4, num_attention_heads=1)
        >>> student = build_student(BertModel(config), layers=2, hidden_size=2)
        >>> type(student).__name__, student.config.initialised_from, student.config.dim
        ('DistilBertModel', [0, 3], 2)
    """
    check_choice("build_student(architecture=...)", architecture, get_args(Architecture))
    for name in SIZE_ARGUMENTS.keys() & config_overrides.keys():
        raise DistillationError(f"A student that is cut out has no free {name}: use {SIZE_ARGUMENTS[name]} for it.")
    source = _as_model(teacher, auto_class, trust_remote_code)
    if getattr(source.config, "is_encoder_decoder", False):
        raise DistillationError(
            f"A {type(source).__name__} has an encoder and a decoder, of which no single student is cut. A student "
            "that translates is a TranslationStudent: with its encoder, and a new decoder."
        )
    encoder = backbone(source)
    blocks = layers_of(encoder)
    chosen = layer_choice(len(blocks), max(1, len(blocks) // 2) if layers is None else layers, rule)
    kind = source.config.model_type
    converted = kind != "distilbert" and (architecture == "distilbert" or (architecture, kind) == ("auto", "bert"))
    config: PreTrainedConfig
    if converted:
        check_convertible(source.config)
        config = distilbert_config(source.config, len(chosen))
        state = distilbert_state(encoder, source.config, chosen)
    else:
        config = _shorter_config(source.config, chosen)
        state = _shorter_state(encoder, blocks, chosen)
    narrowing = None
    sizes = (hidden_size, num_attention_heads, intermediate_size)
    if any(size is not None for size in sizes):
        narrowing = Narrowing(config, state, *sizes)
        config = narrowing.config
    config.initialised_from, config.initialised_depth = list(chosen), len(blocks)
    with building():
        student = _new_model(_override(config, config_overrides, dropout), auto_class, trust_remote_code)
        head = whole = distilbert_head(source, student) if converted else _own_head(source, student)
        if narrowing is not None:
            state = narrowing.cut(state, backbone(student).state_dict())
            head = narrowing.cut(whole, student.state_dict())
        _copy_encoder(state, student, kind)
        copied = _copy_head(head, source.config, student)
        cut = any(head[name].shape != value.shape for name, value in whole.items())
        if converted:
            check_epsilon(student, source.config.layer_norm_eps)
    return _finish(student, cut or not copied or getattr(source.config, "fresh_head", False))


def _as_model(teacher: object, auto_class: str, trust_remote_code: bool) -> PreTrainedModel:
    if isinstance(teacher, (str, Path)):
        return load_model(teacher, auto_class, trust_remote_code)
    model = unwrap(teacher) if isinstance(teacher, nn.Module) else teacher
    if isinstance(model, PreTrainedModel):
        return model
    raise DistillationError(
        f"A student cannot be cut out of a {type(teacher).__name__}, only out of a transformers model. "
        "Pass one, or name the student's own model with Student(source=...)."
    )


def _load_as_it_is(
    source: str, auto_class: str, trust_remote_code: bool, overrides: Mapping[str, Any], dropout: float | None
) -> PreTrainedModel:
    loaded = load_model(source, auto_class, trust_remote_code)
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    with building():
        # a second model, since labels set on a finished one would not change the size of its head
        student = _new_model(_override(config, overrides, dropout), auto_class, trust_remote_code)
        _copy_encoder(backbone(loaded).state_dict(), student, config.model_type)
        copied = _copy_head(_own_head(loaded, student), loaded.config, student)
    return _finish(student, not copied or getattr(loaded.config, "fresh_head", False))


def _new_model(config: PreTrainedConfig, auto_class: str, trust_remote_code: bool = False) -> PreTrainedModel:
    if not auto_class.startswith("Auto"):
        raise DistillationError(f"auto_class={auto_class!r} is no auto class. Use one such as 'AutoModel'.")
    try:
        return model_class(auto_class).from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        if isinstance(error, DistillationError):
            raise
        raise DistillationError(
            f"No {auto_class} can be built for model_type {config.model_type!r} ({short(error)})."
        ) from error


def _finish(student: PreTrainedModel, fresh_head: bool) -> PreTrainedModel:
    student.config.architectures = [type(student).__name__]
    fresh_head = fresh_head and backbone(student) is not student
    if fresh_head or hasattr(student.config, "fresh_head"):
        student.config.fresh_head = fresh_head
    return student.train()


def _checked_dropout(dropout: float | None) -> float | None:
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise DistillationError(f"dropout={dropout} is a share of values: 0 <= dropout < 1, or None.")
    return dropout


def _config_from(values: Mapping[str, Any], overrides: Mapping[str, Any], dropout: float | None) -> PreTrainedConfig:
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise DistillationError(f"Student(config=...) has model_type={kind!r}, which transformers does not know.")
    return _override(CONFIG_MAPPING[kind].from_dict(dict(values)), overrides, dropout)


def _override(config: PreTrainedConfig, overrides: Mapping[str, Any], dropout: float | None) -> PreTrainedConfig:
    unknown = [name for name in overrides if not hasattr(config, name)]
    if unknown:
        raise DistillationError(
            f"The config of a {config.model_type!r} student has no {', '.join(unknown)}. Check the spelling against "
            f"{type(config).__name__}."
        )
    values = dict(overrides)
    if _checked_dropout(dropout) is not None:
        # each architecture has names of its own, such as hidden_dropout_prob and attention_dropout
        values = {name: dropout for name in config.to_dict() if name.endswith(("dropout", "dropout_prob"))} | values
    names = values.pop("id2label", None)
    count = values.pop("num_labels", None)
    if names is not None:
        names = {int(index): str(label) for index, label in names.items()}
        if sorted(names) != list(range(len(names))) or count not in (None, len(names)):
            raise DistillationError(
                f"num_labels={count} and id2label={names} do not fit: ids count from 0 without gap."
            )
        config.id2label = names
        config.label2id = {label: index for index, label in names.items()}
    elif count is not None:
        config.num_labels = count
    for name, value in values.items():
        setattr(config, name, value)
    return config


def _shorter_config(config: PreTrainedConfig, chosen: tuple[int, ...]) -> PreTrainedConfig:
    values = {name: value for name, value in config.to_dict().items() if name not in PROVENANCE}
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(chosen)
    if values.get("layer_types"):
        values["layer_types"] = [values["layer_types"][layer] for layer in chosen]
    return type(config).from_dict(values)


def _shorter_state(encoder: nn.Module, blocks: nn.ModuleList, chosen: tuple[int, ...]) -> dict[str, Tensor]:
    prefix = next(name for name, module in encoder.named_modules() if module is blocks)
    new_index = {str(old): str(new) for new, old in enumerate(chosen)}
    state = {}
    for key, value in encoder.state_dict().items():
        if not key.startswith(f"{prefix}."):
            state[key] = value
            continue
        index, _, rest = key.removeprefix(f"{prefix}.").partition(".")
        if index in new_index:
            state[f"{prefix}.{new_index[index]}.{rest}"] = value
    # a ModernBERT whose layer 0 is left out
    if (scale := state.pop(f"{prefix}.0.attn_norm.weight", None)) is not None:
        _fold_first_norm(state, f"{prefix}.0", scale)
    return state


def _fold_first_norm(state: dict[str, Tensor], first: str, scale: Tensor) -> None:
    """Put the scale of an attention norm into the projection after it.

    A ModernBERT's first layer has no such norm, since the embeddings are normalised. A later layer in its place reads
    what it read of normalised vectors, but for how much the norm of the embeddings differs between dimensions. The
    norm's bias goes into that of the projection, and is lost where the projection has none.
    """
    bias = state.pop(f"{first}.attn_norm.bias", None)
    weight, own = state[f"{first}.attn.Wqkv.weight"], state.get(f"{first}.attn.Wqkv.bias")
    if bias is not None and own is not None:
        state[f"{first}.attn.Wqkv.bias"] = own + weight @ bias
    embeddings = state["embeddings.norm.weight"].square().mean().sqrt()
    state[f"{first}.attn.Wqkv.weight"] = weight * (scale / embeddings)


def _copy_encoder(state: Mapping[str, Tensor], student: PreTrainedModel, kind: str) -> None:
    """Copy all encoder weights, or refuse: one left out would be a silently worse start."""
    target = backbone(student)
    shapes = {name: value.shape for name, value in target.state_dict().items()}
    fitting = {name: value for name, value in state.items() if name in shapes and value.shape == shapes[name]}
    # a pooler is the one part of an encoder that a task may lack or start afresh
    wrong = [name for name in sorted(shapes.keys() | state.keys()) if name not in fitting and "pooler." not in name]
    if wrong:
        raise DistillationError(
            f"The weights of this {kind!r} model do not fit a student with other layers or config values, "
            f"the first is {wrong[0]!r}. Leave out config values that change sizes."
        )
    target.load_state_dict(fitting, strict=False)


def _own_head(source: PreTrainedModel, student: PreTrainedModel) -> dict[str, Tensor]:
    if type(source) is not type(student) or backbone(source) is source:
        return {}
    prefix = f"{source.base_model_prefix}."
    return {name: value for name, value in source.state_dict().items() if not name.startswith(prefix)}


def _copy_head(head: Mapping[str, Tensor], config: PreTrainedConfig, student: PreTrainedModel) -> bool:
    """Copy what fits of a head, its outputs by the names of the labels, and tell whether that is all of it."""
    own, fitting = student.state_dict(), {}
    order = _label_order(student.config, config)
    if order is not None:
        fitting = {name: value for name, value in head.items() if name in own and own[name].shape == value.shape}
        if order != sorted(order):
            output = _output_layer(student)
            for name in fitting.keys() & {f"{output}.weight", f"{output}.bias"}:
                fitting[name] = fitting[name][order]
        student.load_state_dict(fitting, strict=False)
    encoder = {value.data_ptr() for value in backbone(student).state_dict().values()}  # a decoder may be tied to it
    return all(name in fitting or value.data_ptr() in encoder for name, value in own.items())


def _label_order(student: PreTrainedConfig, source: PreTrainedConfig) -> list[int] | None:
    """Return the source's output for each label of the student, or None if the labels are others.

    Names that transformers made up (LABEL_0) say nothing against any.
    """
    if student.num_labels != source.num_labels:
        return None
    try:
        order = doctor.check_labels(doctor.label_names(student), doctor.label_names(source))
    except DistillationError:
        return None
    return list(range(student.num_labels or 0)) if order is None else order


def _output_layer(student: PreTrainedModel) -> str:
    """Return the name of the layer that gives the labels: the last one of a head that is as wide as they are many."""
    encoder, number = set(backbone(student).modules()), student.config.num_labels
    found = [
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == number and module not in encoder
    ]
    return found[-1] if found else ""
