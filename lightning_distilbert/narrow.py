"""Narrower students: which dimensions, heads and neurons of a teacher are kept, and how its weights are cut to them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lightning_distilbert.errors import DistillationError

SIZES = ("hidden_size", "num_attention_heads", "intermediate_size")
# "<path of a block>.<linear layer in it>.<weight or bias>"
BLOCK_NAME = re.compile(r"(.+?\.\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class _Block:
    """The linear layers of a block by what they lead to: heads or the neurons of the feed-forward part.

    ``fused`` are layers of several parts below each other, and their number; ``layer:0`` is the first part of one.
    """

    query: tuple[str, ...]
    key: tuple[str, ...]
    value: str
    out: str
    up: tuple[str, ...]
    down: str
    fused: tuple[tuple[str, int], ...] = ()


_BERT = _Block(
    ("attention.self.query",), ("attention.self.key",), "attention.self.value", "attention.output.dense",
    ("intermediate.dense",), "output.dense",
)  # fmt: skip
ROTARY = frozenset({"modernbert"})
BLOCKS = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "mpnet": _Block(
        ("attention.attn.q",), ("attention.attn.k",), "attention.attn.v", "attention.attn.o", ("intermediate.dense",),
        "output.dense",
    ),
    "deberta-v2": _Block(
        # a query meets the keys of positions, and a key their queries
        ("attention.self.query_proj", "attention.self.pos_query_proj"),
        ("attention.self.key_proj", "attention.self.pos_key_proj"),
        "attention.self.value_proj", "attention.output.dense", ("intermediate.dense",), "output.dense",
    ),
    "distilbert": _Block(
        ("attention.q_lin",), ("attention.k_lin",), "attention.v_lin", "attention.out_lin", ("ffn.lin1",), "ffn.lin2"
    ),
    "modernbert": _Block(
        ("attn.Wqkv:0",), ("attn.Wqkv:1",), "attn.Wqkv:2", "attn.Wo", ("mlp.Wi:0", "mlp.Wi:1"), "mlp.Wo",
        fused=(("attn.Wqkv", 3), ("mlp.Wi", 2)),
    ),
}  # fmt: skip


class Narrowing:
    r"""A choice of what a narrower model keeps of a wider one.

    What is kept is what weighs most:

    - of the hidden width the dimensions with the largest :math:`\sum_n \gamma_{n,d}^2` over all layer norms :math:`n`,
      the same ones in every layer, since all layers add to one stream. A layer norm gives dimension :math:`d` the
      variance :math:`\gamma_d^2`, and every layer reads what a layer norm wrote;
    - of the heads of a layer those with the largest :math:`\sum_d \lVert W_v^d \rVert \lVert W_o^d \rVert` over their
      dimensions :math:`d` (summed over the layers where all share one position bias, as in MPNet);
    - within a head the dimensions with the largest :math:`\lVert W_q^d \rVert \lVert W_k^d \rVert` for queries and
      keys, and the largest :math:`\lVert W_v^d \rVert \lVert W_o^d \rVert` for values;
    - of a feed-forward part the neurons with the largest :math:`\lVert W_{up}^d \rVert \lVert W_{down}^d \rVert`,
      where a gate counts with what it gates.

    ModernBERT turns the dimensions of a head by their places in it, so that its heads stay whole: their number follows
    the width.

    Args:
        config: The config of the wide model. It is not changed.
        state: The weights of its encoder, with the layers that stay.
        hidden_size: The new hidden width; None keeps it.
        num_attention_heads: The new number of heads; None keeps it, or in ModernBERT their width.
        intermediate_size: The new number of neurons of the feed-forward parts; None keeps it.

    Attributes:
        config: The config of the narrow model.

    Raises:
        DistillationError: If a size is no positive whole number or larger than the wide model's, the heads do not
            divide the width or cannot be of this width, or the architecture cannot be cut.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        state: Mapping[str, Tensor],
        hidden_size: int | None = None,
        num_attention_heads: int | None = None,
        intermediate_size: int | None = None,
    ) -> None:
        old = {name: int(getattr(config, _own(config, name))) for name in SIZES}
        asked = {
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
        }
        new = {name: old[name] if (value := asked[name]) is None else value for name in SIZES}
        if config.model_type in ROTARY and num_attention_heads is None:
            new["num_attention_heads"] = _whole_heads(config.model_type, old, hidden_size)
        _check(config.model_type, old, new)
        self.config = _narrow_config(config, old, new)
        self._old, self._new = old, new
        self._hidden = _largest(_stream(state, old["hidden_size"]), new["hidden_size"])
        self._rows: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}
        self._choose(BLOCKS[config.model_type], state)

    def cut(self, state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut weights of the wide model to what is kept.

        Args:
            state: The weights, by the names that they have in the narrow model.
            like: The weights of the narrow model, of which the shapes count. What it lacks stays uncut.
        """
        return {name: self._cut(name, value, like[name]) if name in like else value for name, value in state.items()}

    def _choose(self, block: _Block, state: Mapping[str, Tensor]) -> None:
        """Choose heads, dimensions and neurons of each block."""
        blocks: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in state.items():
            if (match := BLOCK_NAME.fullmatch(name)) and match[3] == "weight":
                parts = dict(block.fused).get(match[2], 1)
                names = [match[2]] if parts == 1 else [f"{match[2]}:{part}" for part in range(parts)]
                blocks[match[1]] |= dict(zip(names, value.float().chunk(parts), strict=True))
        head_scores = {
            path: (_rows(weights, (block.value,)) * _columns(weights, block.out))
            .view(self._old["num_attention_heads"], -1)
            .sum(1)
            for path, weights in blocks.items()
        }
        # one bias for each head, the same in all layers
        bias = next((name for name in state if name.endswith("relative_attention_bias.weight")), None)
        if bias is not None:
            together = torch.stack(list(head_scores.values())).sum(0)
            head_scores = dict.fromkeys(head_scores, together)
            self._columns[bias.removesuffix(".weight")] = _largest(together, self._new["num_attention_heads"])
        for path, weights in blocks.items():
            heads = _largest(head_scores[path], self._new["num_attention_heads"])
            matched = self._within(heads, _rows(weights, block.query) * _rows(weights, block.key))
            carried = self._within(heads, _rows(weights, (block.value,)) * _columns(weights, block.out))
            neurons = _largest(_rows(weights, block.up) * _columns(weights, block.down), self._new["intermediate_size"])
            rows = dict.fromkeys((*block.query, *block.key), matched) | {block.value: carried}
            rows |= dict.fromkeys(block.up, neurons)
            for name, parts in block.fused:
                size = len(weights[f"{name}:0"])
                rows[name] = torch.cat([rows.pop(f"{name}:{part}") + part * size for part in range(parts)])
            self._rows |= {f"{path}.{name}": index for name, index in rows.items()}
            self._columns |= {f"{path}.{block.out}": carried, f"{path}.{block.down}": neurons}

    def _within(self, heads: Tensor, scores: Tensor) -> Tensor:
        """Return the dimensions to keep of these heads, counted over all heads."""
        old, new = (sizes["hidden_size"] // sizes["num_attention_heads"] for sizes in (self._old, self._new))
        return (heads.unsqueeze(1) * old + _largest(scores.view(-1, old)[heads], new)).flatten()

    def _cut(self, name: str, value: Tensor, like: Tensor) -> Tensor:
        layer = name.rpartition(".")[0]
        chosen = (self._rows.get(layer), self._columns.get(layer))
        for axis, index in zip(range(value.ndim), (*chosen, None), strict=False):
            sizes = (value.shape[axis], like.shape[axis])
            if index is None and sizes == (self._old["hidden_size"], self._new["hidden_size"]):
                index = self._hidden
            if index is not None:
                value = value.index_select(axis, index.to(value.device))
        return value


def _own(config: PreTrainedConfig, name: str) -> str:
    return "hidden_dim" if name == "intermediate_size" and config.model_type == "distilbert" else name


def _whole_heads(kind: str, old: Mapping[str, int], hidden_size: int | None) -> int:
    width = old["hidden_size"] // old["num_attention_heads"]
    if isinstance(hidden_size, int) and 0 < hidden_size <= old["hidden_size"] and hidden_size % width:
        raise DistillationError(
            f"hidden_size={hidden_size} is no number of whole heads, and those of a {kind!r} model have to keep their "
            f"width, {width}. Choose a multiple of {width}."
        )
    return old["num_attention_heads"] if not hidden_size else max(1, int(hidden_size) // width)


def _check(kind: str, old: Mapping[str, int], new: Mapping[str, int]) -> None:
    if kind not in BLOCKS:
        raise DistillationError(
            f"A {kind!r} student cannot be narrower than its teacher: how to cut the weights is known for "
            f"{', '.join(BLOCKS)}. Leave out {', '.join(SIZES)}, and take fewer layers."
        )
    for name in SIZES:
        if not isinstance(new[name], int) or isinstance(new[name], bool) or not 1 <= new[name] <= old[name]:
            raise DistillationError(
                f"{name}={new[name]!r} is out of range: the teacher's is {old[name]}. Choose from 1 to {old[name]}."
            )
    width, heads = new["hidden_size"], new["num_attention_heads"]
    if width % heads:
        fitting = [number for number in range(1, old["num_attention_heads"] + 1) if width % number == 0]
        raise DistillationError(
            f"hidden_size={width} cannot be divided among {heads} heads. Choose num_attention_heads from {fitting}."
        )
    old_width = old["hidden_size"] // old["num_attention_heads"]
    if kind in ROTARY and width // heads != old_width:
        raise DistillationError(
            f"hidden_size={width} with num_attention_heads={heads} makes heads of width {width // heads}, and those of "
            f"a {kind!r} model have to keep theirs, {old_width}. Leave out num_attention_heads."
        )
    if width // heads > old_width:
        raise DistillationError(
            f"hidden_size={width} with num_attention_heads={heads} makes heads of width {width // heads}, and the "
            f"teacher's have {old_width}: there is nothing to fill them from. Choose at least "
            f"{-(-width // old_width)} heads, or a smaller hidden_size."
        )


def _narrow_config(config: PreTrainedConfig, old: Mapping[str, int], new: Mapping[str, int]) -> PreTrainedConfig:
    values = config.to_dict()
    if old["hidden_size"] != values.get("embedding_size") == new["hidden_size"]:
        raise DistillationError(
            f"hidden_size={new['hidden_size']} is the width of the teacher's embeddings, and a {config.model_type!r} "
            "model of equal widths has no projection between the two, which this teacher has. Choose another size."
        )
    for name in ("embedding_size", "pooler_hidden_size"):
        # as wide as the layers: no projection lies between, so that it is cut with them
        if values.get(name) == old["hidden_size"]:
            values[name] = new["hidden_size"]
    if "attention_head_size" in values:
        values["attention_head_size"] = new["hidden_size"] // new["num_attention_heads"]
    for name in SIZES:
        own = _own(config, name)
        values[config.attribute_map.get(own, own)] = new[name]
    return type(config).from_dict(values)


def _stream(state: Mapping[str, Tensor], width: int) -> Tensor:
    """Sum up the squared weights of the layer norms for each dimension of the hidden width."""
    norms = [value.float() for name, value in state.items() if name.lower().endswith("norm.weight")]
    return torch.stack([norm.square() for norm in norms if norm.shape == (width,)]).sum(0)


def _rows(weights: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return torch.stack([weights[name].norm(dim=1) for name in names if name in weights]).sum(0)


def _columns(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[name].norm(dim=0)


def _largest(scores: Tensor, number: int) -> Tensor:
    """Return where the largest scores along the last axis are, in increasing order; the lower of two equal ones."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :number].sort(dim=-1).values
