"""Published sets of objectives by name, and what the ``objectives`` argument may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_distilbert.errors import DistillationError, nearest
from lightning_distilbert.objectives.attention import Attention
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.hidden_states import HiddenStates
from lightning_distilbert.objectives.relations import Relations
from lightning_distilbert.objectives.sentence_embedding import SentenceEmbedding
from lightning_distilbert.objectives.similarity import Similarity
from lightning_distilbert.objectives.soft_targets import SoftTargets
from lightning_distilbert.spec import from_config


@dataclass(frozen=True)
class Preset:
    """Objectives with their weights, and the weight of the task's own loss beside them.

    Attributes:
        objectives: The objectives, each with its weight.
        task_weight: The factor of the task loss.
    """

    objectives: tuple[Objective, ...]
    task_weight: float = 1.0


def _distilbert() -> Preset:
    # 5, 2 and 1 are the paper's --alpha_ce, --alpha_mlm and --alpha_cos
    objectives = (SoftTargets(temperature=2.0, weight=5.0), HiddenStates(layers="last", metric="cosine", weight=1.0))
    return Preset(objectives, task_weight=2.0)


def _layerwise() -> Preset:
    # the default of tasks with labels; measured against the other presets in docs/results.md
    objectives = (SoftTargets(temperature=2.0, weight=1.0), HiddenStates(layers="auto", metric="mse", weight=10.0))
    return Preset(objectives, task_weight=1.0)


def _logits() -> Preset:
    # the paper's second step on SQuAD: --alpha_ce 0.5, --alpha_squad 0.5, --temperature 2
    return Preset((SoftTargets(temperature=2.0, weight=0.5),), task_weight=0.5)


def _embedding() -> Preset:
    return Preset((SentenceEmbedding(metric="cosine", weight=1.0), Similarity(weight=1.0)), task_weight=0.0)


def _tinybert() -> Preset:
    # the paper's lambda is 1 for every layer, and so are both sums in its general_distill.py; here they are means over
    # the layers, of which the second has one more pair (the embeddings). The paper's map "every" is for a student that
    # starts from noise: one cut out of its teacher has to follow the layers that it was copied from (docs/results.md)
    objectives = (
        Attention(layers="auto", metric="mse", weight=1.0),
        HiddenStates(layers="auto", metric="mse", embeddings=True, weight=1.0),
    )
    return Preset(objectives, task_weight=0.0)


def _tinybert_prediction() -> Preset:
    # --pred_distill of its task_distill.py: --temperature 1, soft labels alone
    return Preset((SoftTargets(temperature=1.0, weight=1.0),), task_weight=0.0)


def _minilm() -> Preset:
    # the relations are the only term, and weighed alike; Relations(heads=48) is the paper's number for base models
    return Preset((Relations(weight=1.0),), task_weight=0.0)


def _textbrewer() -> Preset:
    # kd_loss_weight 1, hard_label_weight 0 and temperature 8; each pair of its examples/matches (L4t_hidden_mse, ...)
    # has the weight 1; its map is "every", as TinyBERT's. Its soft targets have no factor T^2, so that 1/64 of ours
    # have the same gradient. The NST term ("hidden_smmd") that its README adds is not there.
    objectives = (
        SoftTargets(temperature=8.0, weight=1 / 64),
        HiddenStates(layers="auto", metric="mse", embeddings=True, weight=1.0),
    )
    return Preset(objectives, task_weight=0.0)


def _patient() -> Preset:
    # T 10, alpha 0.5 and beta 100 are the settings of the authors' best 6-layer runs on SST-2 and MNLI (their
    # result/glue/result_summary/pkd_6layer_all.csv); the loss is (1 - alpha) task + alpha soft + beta patience
    objectives = (
        SoftTargets(temperature=10.0, weight=0.5),
        HiddenStates(layers="skip", metric="normalized_mse", tokens="first", weight=100.0),
    )
    return Preset(objectives, task_weight=0.5)


PRESETS: dict[str, Callable[[], Preset]] = {
    # Sanh et al. 2019: soft targets and the directions of the last hidden states, 5 / 2 (task) / 1
    "distilbert": _distilbert,
    # ours, for a task: soft targets, and the hidden states after each layer that the student has
    "layerwise": _layerwise,
    # Sanh et al. 2019, section 3: a second step of distillation on the task itself, soft targets alone
    "logits": _logits,
    # sentence embeddings without labels: the teacher's directions and its rankings
    "embedding": _embedding,
    # Jiao et al. 2020, intermediate layers: where the student looks, and what each layer says, embeddings included
    "tinybert": _tinybert,
    # Jiao et al. 2020, the stage after it: soft targets alone
    "tinybert-prediction": _tinybert_prediction,
    # Wang et al. 2021 (MiniLM v2): relations of the last layers, to be fine-tuned afterwards
    "minilm": _minilm,
    # Yang et al. 2020: hot soft targets and hidden states
    "textbrewer": _textbrewer,
    # Sun et al. 2019 (PKD-Skip): soft targets and the directions of [CLS] in intermediate layers
    "patient": _patient,
}


def resolve_objectives(value: str | Preset | Objective | Mapping[str, Any] | Sequence[Any]) -> Preset:
    """Turn what a user may write for ``objectives`` into objectives and the weight of the task loss.

    Args:
        value: The name of a preset, one objective, or a list of objectives. A mapping with ``class_path`` and
            ``init_args`` may stand for an objective. The same class may come twice.

    Returns:
        The preset of that name, newly made, or the given objectives with a task weight of 1.

    Raises:
        DistillationError: If the name is unknown, the list is empty, the same object comes twice, or something in it is
            no objective.

    Example:
        >>> preset = resolve_objectives("distilbert")
        >>> [(objective.name, objective.weight) for objective in preset.objectives], preset.task_weight
        ([('soft_targets', 5.0), ('hidden_states', 1.0)], 2.0)
    """
    if isinstance(value, Preset):
        return value
    if isinstance(value, str):
        if value not in PRESETS:
            raise DistillationError(
                f"There are no objectives named {value!r}.{nearest(value, [*PRESETS, *_classes()])} Known are "
                f"{', '.join(sorted(PRESETS))}. Or give a list of objectives, such as [SoftTargets(temperature=2.0)], "
                "in YAML [{class_path: SoftTargets}]."
            )
        return PRESETS[value]()
    items = [value] if isinstance(value, (Objective, Mapping)) or not isinstance(value, Sequence) else list(value)
    objectives = tuple(from_config(item) if isinstance(item, Mapping) else item for item in items)
    for item in objectives:
        if not isinstance(item, Objective):
            raise DistillationError(
                f"objectives holds {item!r}, which is no objective: give the name of a preset alone "
                f"({', '.join(sorted(PRESETS))}), or a list of objectives, such as [SoftTargets(temperature=2.0)]."
            )
    if not objectives:
        raise DistillationError(
            f"objectives is empty, so that nothing would be distilled: name a preset ({', '.join(sorted(PRESETS))}) or "
            "give at least one objective."
        )
    if len(set(map(id, objectives))) < len(objectives):
        raise DistillationError(
            "objectives holds one and the same object twice: its projections would be shared. Make two."
        )
    return Preset(objectives)


def _classes(base: type[Objective] = Objective) -> list[str]:
    own = [base.__name__] if "name" in vars(base) and base is not Objective else []  # a base of several has none
    for cls in base.__subclasses__():
        own += _classes(cls)
    return own
