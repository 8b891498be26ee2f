"""How an encoder of BERT's kind is turned into a DistilBERT: its config, its weights, its head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, PreTrainedConfig, PreTrainedModel

from lightning_distilbert.architectures import backbone
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import unused_positions

CONVERTIBLE = ("bert", "roberta", "electra")
# DistilBERT writes this value into its code; no config can change it
DISTILBERT_EPS = 1e-12
# the most that another epsilon may change hidden states, as a share of their norm
EPS_TOLERANCE = 1e-2
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
# head -> head of a DistilBERT. All compute the same in both but those for text classification, where DistilBERT has a
# rectifier and the others have tanh or GELU: copied, they are still a far better start than a fresh head
HEAD_NAMES = {
    "BertForSequenceClassification": {"bert.pooler.dense": "pre_classifier", "classifier": "classifier"},
    "RobertaForSequenceClassification": {"classifier.dense": "pre_classifier", "classifier.out_proj": "classifier"},
    "ElectraForSequenceClassification": {"classifier.dense": "pre_classifier", "classifier.out_proj": "classifier"},
    "BertForMaskedLM": {
        "cls.predictions.transform.dense": "vocab_transform",
        "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
        "cls.predictions.decoder": "vocab_projector",
    },
    "RobertaForMaskedLM": {
        "lm_head.dense": "vocab_transform",
        "lm_head.layer_norm": "vocab_layer_norm",
        "lm_head.decoder": "vocab_projector",
    },
    "ElectraForMaskedLM": {
        "generator_predictions.dense": "vocab_transform",
        "generator_predictions.LayerNorm": "vocab_layer_norm",
        "generator_lm_head": "vocab_projector",
    },
    **{f"{kind}ForTokenClassification": {"classifier": "classifier"} for kind in ("Bert", "Roberta", "Electra")},
    **{f"{kind}ForQuestionAnswering": {"qa_outputs": "qa_outputs"} for kind in ("Bert", "Roberta", "Electra")},
}


def check_convertible(config: PreTrainedConfig) -> None:
    """Refuse a model of which a DistilBERT would compute something else.

    Args:
        config: The model's config.

    Raises:
        DistillationError: If it is of another kind, or has what DistilBERT lacks.

    Example:
        >>> from transformers import BertConfig
        >>> check_convertible(BertConfig())
    """
    kind = config.model_type
    if kind not in CONVERTIBLE:
        raise DistillationError(
            f"A {kind!r} model cannot be turned into a DistilBERT, only one of {', '.join(CONVERTIBLE)} can. "
            "Use architecture='same'."
        )
    for name, value in {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "embedding_size": config.hidden_size,
    }.items():
        if (seen := getattr(config, name, value)) != value:
            raise DistillationError(
                f"The teacher's {name} is {seen!r}; DistilBERT knows {value!r} only. Use architecture='same'."
            )


def distilbert_config(config: PreTrainedConfig, num_layers: int) -> DistilBertConfig:
    """Return the config of the DistilBERT that a model becomes.

    Args:
        config: The config of a model that `check_convertible` let pass.
        num_layers: How many layers the DistilBERT has.
    """
    labels: Any = {"id2label": config.id2label, "label2id": config.label2id}
    unused = unused_positions(config.model_type, config.pad_token_id)
    # the head of a classifier drops as much as the encoder unless it says otherwise, that of a reader nothing
    dropout, own = config.hidden_dropout_prob, config.classifier_dropout
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings - unused,
        sinusoidal_pos_embds=False,
        n_layers=num_layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=dropout,
        attention_dropout=config.attention_probs_dropout_prob,
        seq_classif_dropout=dropout if own is None else own,
        qa_dropout=0.0,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
        problem_type=config.problem_type,
        **copy.deepcopy(labels),
    )


def distilbert_state(encoder: nn.Module, config: PreTrainedConfig, chosen: tuple[int, ...]) -> dict[str, Tensor]:
    """Return an encoder's weights under the names of a DistilBERT.

    Args:
        encoder: The base model.
        config: Its config.
        chosen: The layers to take.
    """
    source = encoder.state_dict()
    unused = unused_positions(config.model_type, config.pad_token_id)
    positions = source["embeddings.position_embeddings.weight"][unused:].float()
    token_type = source["embeddings.token_type_embeddings.weight"][0].float()
    state = {"embeddings.position_embeddings.weight": positions + token_type}
    for name in ("word_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
        state[f"embeddings.{name}"] = source[f"embeddings.{name}"]
    for new, old in enumerate(chosen):
        for theirs, ours in BLOCK_NAMES.items():
            for kind in ("weight", "bias"):
                state[f"transformer.layer.{new}.{ours}.{kind}"] = source[f"encoder.layer.{old}.{theirs}.{kind}"]
    return state


def distilbert_head(source: PreTrainedModel, student: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a model's head under the names of a DistilBERT's head.

    Args:
        source: The model.
        student: The DistilBERT.

    Returns:
        The weights; none where the two heads are of different tasks or a DistilBERT has no such head.
    """
    task = type(student).__name__.removeprefix("DistilBert")
    if not type(source).__name__.endswith(task):
        return {}
    names, state = HEAD_NAMES.get(type(source).__name__, {}), source.state_dict()
    return {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")
    }


@torch.no_grad()
def check_epsilon(student: PreTrainedModel, epsilon: float) -> None:
    """Refuse a DistilBERT that differs too much from its teacher by the epsilon of its layer norms.

    RoBERTa's is 1e-5 and DistilBERT's cannot be changed. How much that matters depends on how large the embeddings are,
    so it is measured: the hidden states with both epsilons, for tokens from all over the vocabulary.

    Args:
        student: The DistilBERT, which is not changed.
        epsilon: The teacher's epsilon.

    Raises:
        DistillationError: If the hidden states of a layer differ by more than `EPS_TOLERANCE` of their norm.
    """
    if epsilon == DISTILBERT_EPS:
        return
    encoder, config = copy.deepcopy(backbone(student)).eval(), student.config
    length = min(32, config.max_position_embeddings)
    ids = torch.linspace(0, config.vocab_size - 1, 4 * length).long().view(length, 4).T
    ours = encoder(ids, output_hidden_states=True).hidden_states
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon
    theirs = encoder(ids, output_hidden_states=True).hidden_states
    share = max(float((mine - wanted).norm() / wanted.norm()) for mine, wanted in zip(ours, theirs, strict=True))
    if share > EPS_TOLERANCE:
        raise DistillationError(
            f"The teacher's layer_norm_eps is {epsilon:g}; DistilBERT's is {DISTILBERT_EPS:g}, and no config changes "
            f"it. With embeddings as small as this teacher's that moves hidden states by {share:.1%}, more than "
            f"{EPS_TOLERANCE:.0%}. Use architecture='same'."
        )
