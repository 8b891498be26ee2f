"""How a student is made: cut out of a teacher, loaded as it is, or built from a config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, DistilBertConfig, PreTrainedConfig, PreTrainedModel

from lightning_distilbert.architectures import backbone, layers_of, unwrap
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import building, load_model, model_class, short
from lightning_distilbert.mapping import Rule, layer_choice
from lightning_distilbert.spec import Spec

Architecture = Literal["auto", "distilbert", "same"]
# what belongs to one saved model and must not travel into another model's config
PROVENANCE = ("initialised_from", "lightning_distilbert")
# DistilBERT writes this value into its code; no config can change it
DISTILBERT_EPS = 1e-12
# BERT block -> DistilBERT block
BLOCK_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


class Student(Spec):
    """A student described by plain values.

    Without ``source`` it is cut out of the teacher. With a ``source`` alone that model is loaded as it is (such as
    ``distilbert-base-uncased``); with a ``source`` and ``layers`` it is cut out of that model, for instance the
    pretrained model that the teacher was fine-tuned from. With a ``config`` it is built with random weights, for a
    checkpoint that brings the weights itself.

    Args:
        layers: How many layers, or which ones. None is half of the teacher's, as in DistilBERT, or all of a ``source``.
        architecture: ``"distilbert"`` turns BERT layers into DistilBERT layers; ``"same"`` keeps the architecture;
            ``"auto"`` is the first for a BERT and the second for all others.
        rule: How a number of layers is chosen: see `layer_choice`.
        source: A folder or a hub name.
        config: A transformers config as a plain dict with its ``model_type``.
        trust_remote_code: Whether code that comes with a model may run.

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
    ) -> None:
        _check_choice("architecture", architecture, get_args(Architecture))
        _check_choice("rule", rule, get_args(Rule))
        if config is not None and (source is not None or layers is not None):
            raise DistillationError("Student(config=...) builds a whole model. Leave out source and layers with it.")
        if source is not None and layers is None and (architecture == "distilbert" or rule != "uniform"):
            raise DistillationError(
                f"Student(source={str(source)!r}) without layers loads that model as it is, so that "
                f"architecture={architecture!r} and rule={rule!r} have no effect. Say how many layers to cut out of it."
            )
        self.layers = layers
        self.architecture: Architecture = architecture
        self.rule: Rule = rule
        self.source = source
        self.config = config
        self.trust_remote_code = trust_remote_code

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
        if self.config is not None:
            with building():
                return _finish(_new_model(_config_from(self.config, config_overrides), auto_class))
        if self.source is not None and self.layers is None:
            return _load_as_it_is(self.source, auto_class, self.trust_remote_code, config_overrides)
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
    **config_overrides: Any,
) -> PreTrainedModel:
    """Cut a student with fewer layers out of a teacher.

    All weights outside the layers are copied, and of the layers the chosen ones. From BERT to DistilBERT the embedding
    of token type 0 is added to each position embedding, because DistilBERT has no token types; the word embeddings stay
    as they are, since a masked-language head is tied to them. In eval mode the student's hidden states then equal those
    of the teacher with the same layers alone. A task head is copied if teacher and student have the same class and the
    same labels in the same order; any other head starts fresh.

    Args:
        teacher: A transformers model, a folder, or a hub name. It is not changed.
        layers: How many layers, or which ones; None is half of them, at least one.
        architecture: ``"auto"``, ``"distilbert"`` (of a BERT or a DistilBERT) or ``"same"``.
        rule: How a number of layers is chosen: see `layer_choice`.
        auto_class: The transformers auto class of the student.
        trust_remote_code: Whether code that comes with the teacher may run.
        **config_overrides: Config values of the student; unknown names are refused.

    Returns:
        A plain transformers model in float32 on the CPU, in train mode; ``config.initialised_from`` lists the chosen
        layers.

    Raises:
        DistillationError: If the teacher cannot be loaded or lacks weights, the layers are out of range, the
            architecture cannot be reached from this teacher, or a config value is unknown.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=4, num_attention_heads=1)
        >>> student = build_student(BertModel(config), layers=2)
        >>> type(student).__name__, student.config.initialised_from
        ('DistilBertModel', [0, 3])
    """
    _check_choice("architecture", architecture, get_args(Architecture))
    source = _as_model(teacher, auto_class, trust_remote_code)
    encoder = backbone(source)
    blocks = layers_of(encoder)
    chosen = layer_choice(len(blocks), max(1, len(blocks) // 2) if layers is None else layers, rule)
    kind = source.config.model_type
    config: PreTrainedConfig
    if architecture == "distilbert" and kind not in ("bert", "distilbert"):
        raise DistillationError(
            f"A {kind!r} model cannot be turned into a DistilBERT, only a BERT can. Use architecture='same'."
        )
    if kind == "bert" and architecture != "same":
        _check_convertible(source.config)
        config = _distilbert_config(source.config, len(chosen))
        state = _distilbert_state(encoder, chosen)
    else:
        config = _shorter_config(source.config, chosen)
        state = _shorter_state(encoder, blocks, chosen)
    config.initialised_from = list(chosen)
    with building():
        student = _new_model(_override(config, config_overrides), auto_class, trust_remote_code)
        _copy_encoder(state, student, kind)
        _copy_head(source, student)
    return _finish(student)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DistillationError(f"{name}={value!r} is unknown. Choose one of {', '.join(map(repr, choices))}.")


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
    source: str, auto_class: str, trust_remote_code: bool, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    loaded = load_model(source, auto_class, trust_remote_code)
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    with building():
        # a second model, since labels set on a finished one would not change the size of its head
        student = _new_model(_override(config, overrides), auto_class, trust_remote_code)
        _copy_encoder(backbone(loaded).state_dict(), student, config.model_type)
        _copy_head(loaded, student)
    return _finish(student)


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


def _finish(student: PreTrainedModel) -> PreTrainedModel:
    student.config.architectures = [type(student).__name__]
    return student.train()


def _config_from(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> PreTrainedConfig:
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise DistillationError(f"Student(config=...) has model_type={kind!r}, which transformers does not know.")
    return _override(CONFIG_MAPPING[kind].from_dict(dict(values)), overrides)


def _override(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    unknown = [name for name in overrides if not hasattr(config, name)]
    if unknown:
        raise DistillationError(
            f"The config of a {config.model_type!r} student has no {', '.join(unknown)}. Check the spelling against "
            f"{type(config).__name__}."
        )
    values = dict(overrides)
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
    if config.model_type == "modernbert" and chosen[0] != 0:
        raise DistillationError(
            f"The layers {list(chosen)} leave out layer 0, which ModernBERT cannot do: its first layer alone has no "
            "attention norm, because the embeddings are normalised. Choose layers that start with 0."
        )
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
    return state


def _check_convertible(config: PreTrainedConfig) -> None:
    """Refuse a BERT of which a DistilBERT would compute something else."""
    wanted = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "layer_norm_eps": DISTILBERT_EPS,
    }
    for name, value in wanted.items():
        if (seen := getattr(config, name, value)) != value:
            raise DistillationError(
                f"The teacher's {name} is {seen!r}; DistilBERT knows {value!r} only. Use architecture='same'."
            )


def _distilbert_config(bert: PreTrainedConfig, num_layers: int) -> DistilBertConfig:
    labels: Any = {"id2label": bert.id2label, "label2id": bert.label2id}
    config = DistilBertConfig(
        vocab_size=bert.vocab_size,
        max_position_embeddings=bert.max_position_embeddings,
        sinusoidal_pos_embds=False,
        n_layers=num_layers,
        n_heads=bert.num_attention_heads,
        dim=bert.hidden_size,
        hidden_dim=bert.intermediate_size,
        dropout=bert.hidden_dropout_prob,
        attention_dropout=bert.attention_probs_dropout_prob,
        activation=bert.hidden_act,
        initializer_range=bert.initializer_range,
        pad_token_id=bert.pad_token_id,
        bos_token_id=bert.bos_token_id,
        eos_token_id=bert.eos_token_id,
        tie_word_embeddings=bert.tie_word_embeddings,
        problem_type=bert.problem_type,
        **copy.deepcopy(labels),
    )
    if bert.classifier_dropout is not None:
        config.seq_classif_dropout = bert.classifier_dropout
    return config


def _distilbert_state(bert: nn.Module, chosen: tuple[int, ...]) -> dict[str, Tensor]:
    source = bert.state_dict()
    positions = source["embeddings.position_embeddings.weight"].float()
    token_type = source["embeddings.token_type_embeddings.weight"][0].float()
    state = {"embeddings.position_embeddings.weight": positions + token_type}
    for name in ("word_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
        state[f"embeddings.{name}"] = source[f"embeddings.{name}"]
    for new, old in enumerate(chosen):
        for theirs, ours in BLOCK_NAMES.items():
            for kind in ("weight", "bias"):
                state[f"transformer.layer.{new}.{ours}.{kind}"] = source[f"encoder.layer.{old}.{theirs}.{kind}"]
    return state


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


def _copy_head(source: PreTrainedModel, student: PreTrainedModel) -> None:
    if (
        type(source) is not type(student)
        or backbone(source) is source
        or not _same_labels(source.config, student.config)
    ):
        return
    prefix = f"{source.base_model_prefix}."
    own = student.state_dict()
    head = {
        name: value
        for name, value in source.state_dict().items()
        if not name.startswith(prefix) and name in own and own[name].shape == value.shape
    }
    student.load_state_dict(head, strict=False)


def _same_labels(first: PreTrainedConfig, second: PreTrainedConfig) -> bool:
    """Equal names in equal order; names that transformers made up (LABEL_0) say nothing against it."""
    if first.num_labels != second.num_labels:
        return False
    made_up = {index: f"LABEL_{index}" for index in range(first.num_labels or 0)}
    return first.id2label == second.id2label or made_up in (first.id2label, second.id2label)
