"""Where the parts of a BERT-family model are: its backbone, its blocks, the inputs that it takes."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import EncoderDecoderModel, PreTrainedModel

from lightning_distilbert.errors import DistillationError

TENSOR_INPUTS = (
    "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "decoder_input_ids",
)  # fmt: skip
# what a batch carries beside them where the teacher has a tokenizer of its own
TEACHER_INPUTS = ("teacher_input_ids", "teacher_attention_mask", "teacher_token_type_ids")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Args:
        module: A module, wrapped any number of times or not at all.

    Returns:
        The module itself.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def backbone(model: nn.Module) -> nn.Module:
    """Return the base model without its task head.

    Args:
        model: A transformers model with or without head, wrapped or not.

    Returns:
        What ``base_model_prefix`` names, such as the ``BertModel`` of a ``BertForSequenceClassification``. A base model
        and a module that is not of transformers come back as they are, unwrapped.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> type(backbone(BertForMaskedLM(config))).__name__
        'BertModel'
    """
    model = unwrap(model)
    return model.base_model if isinstance(model, PreTrainedModel) else model


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the encoder of a model that translates; any other module comes back as it is.

    Args:
        model: A module, wrapped or not.

    Example:
        >>> encoder_of(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    inner = unwrap(model)
    if isinstance(inner, PreTrainedModel) and getattr(inner.config, "is_encoder_decoder", False):
        encoder: nn.Module = inner.get_encoder()
        return encoder
    return model


def layers_of(module: nn.Module) -> nn.ModuleList:
    """Find the transformer blocks of an encoder.

    They are the outermost ``nn.ModuleList`` whose members are of one class and have sub-modules of their own; in a
    transformers model it must also be as long as ``config.num_hidden_layers`` says.

    The input of block ``i`` is hidden state ``i`` of ``output_hidden_states=True``. The output of block ``i`` is hidden
    state ``i + 1`` in BERT, RoBERTa, ELECTRA, MPNet and DistilBERT, with two exceptions elsewhere: DeBERTa-v2 with
    ``conv_kernel_size > 0`` adds a convolution after block 0, and ModernBERT's last hidden state is the one after
    ``final_norm``. Inputs of the blocks and the base model's ``last_hidden_state`` are right in all seven.

    Args:
        module: A transformers model, or any module that holds one encoder, such as ``nn.TransformerEncoder`` or a
            LightningModule.

    Returns:
        The blocks in order.

    Raises:
        DistillationError: If there is no such list, or more than one.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1), 3, enable_nested_tensor=False)
        >>> len(layers_of(encoder))
        3
    """
    module = backbone(module)
    found = _block_lists(module)
    if isinstance(module, PreTrainedModel):
        depth = getattr(module.config, "num_hidden_layers", None)
        found = {name: blocks for name, blocks in found.items() if depth is None or len(blocks) == depth}
    if len(found) == 1:
        return next(iter(found.values()))
    kind = type(module).__name__
    if not found:
        lists = [name or "the module" for name, child in module.named_modules() if isinstance(child, nn.ModuleList)]
        raise DistillationError(
            f"No list of transformer blocks was found in {kind} (an nn.ModuleList of one class of modules). Its module "
            f"lists are: {', '.join(lists) or 'none'}. Name the encoder itself."
        )
    listed = ", ".join(f"{name!r} ({len(blocks)} x {type(blocks[0]).__name__})" for name, blocks in found.items())
    raise DistillationError(f"{kind} holds more than one list of blocks: {listed}. Name the encoder that you mean.")


@contextlib.contextmanager
def logits_at(model: nn.Module, positions: Tensor | None) -> Iterator[None]:
    """Evaluate a token-level head at some positions only, for the time of a ``with`` block.

    Logits over a vocabulary are the largest tensor of a masked language model by far, and most of them meet no loss.
    Within the block, the first part of the head gets the rows of the last hidden state at these positions, so that the
    model's ``logits`` are of shape ``(N, vocabulary)``, in the row-major order of ``positions``. Blocks may be nested.

    Args:
        model: A transformers model with a token-level head, wrapped or not. A model without a head, and a module of
            another kind, are left as they are.
        positions: Boolean, of shape ``(batch, sequence)``, with ``N`` True; None changes nothing. Of a model that
            translates they are positions of the translation.

    Raises:
        DistillationError: If the head meets a sequence of another shape.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> model, ids = BertForMaskedLM(config), torch.tensor([[1, 2, 3]])
        >>> with logits_at(model, torch.tensor([[True, False, True]])):
        ...     model(ids).logits.shape
        torch.Size([2, 9])
    """
    model = unwrap(model)
    if isinstance(model, EncoderDecoderModel):
        model = model.decoder  # where its head is
    base = backbone(model)
    if positions is None or base is model:
        yield
        return
    shape, index = positions.shape, positions.flatten().nonzero().squeeze(-1)

    def narrow(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None  # the part before this one got the rows already
        if args[0].shape[:2] != shape:
            raise DistillationError(
                f"The positions of the logits have the shape {tuple(shape)}, and the head {type(module).__name__} got "
                f"hidden states of shape {tuple(args[0].shape)}: they must be those of one batch."
            )
        return args[0].flatten(0, 1).index_select(0, index), *args[1:]

    handles = [child.register_forward_pre_hook(narrow) for child in model.children() if child is not base]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_level_head(module: nn.Module) -> bool:
    """Tell whether a transformers model has a head that answers token by token.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> token_level_head(BertForMaskedLM(config))
        True
    """
    kinds = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining")
    return type(unwrap(module)).__name__.endswith(kinds)


def has_labels(module: nn.Module) -> bool:
    """Tell whether the logits of a model may be those of labels, and not of a vocabulary or of positions.

    The config of such a head may still hold the names of the labels that the model had before.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> has_labels(BertForMaskedLM(config)), has_labels(nn.Linear(2, 2))
        (False, True)
    """
    return not type(unwrap(module)).__name__.endswith(("ForMaskedLM", "ForQuestionAnswering"))


def _block_lists(module: nn.Module, prefix: str = "") -> dict[str, nn.ModuleList]:
    """Map paths to the outermost lists of blocks: the search does not go below a list that it took."""
    # a list of linear layers, dropouts or metrics is no list of blocks: these have no sub-modules
    if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1 and [*module[0].children()]:
        return {prefix: module}
    found: dict[str, nn.ModuleList] = {}
    for name, child in module.named_children():
        found |= _block_lists(child, f"{prefix}.{name}" if prefix else name)
    return found


def accepted_inputs(module: nn.Module) -> frozenset[str]:
    """Tell which of the usual tensors a module's ``forward`` takes by name.

    The ``forward`` of transformers 5 models ends in ``**kwargs`` and swallows what it does not know, so that
    ``**kwargs`` counts for nothing there. A module of another kind whose ``forward`` names no argument at all
    (``*args, **kwargs``) is taken to pass everything on.

    Args:
        module: The module, wrapped (by PEFT too) or not. Decorated forwards are followed to the function that they
            wrap.

    Returns:
        The accepted names among ``input_ids``, ``attention_mask``, ``token_type_ids``, ``position_ids``,
        ``inputs_embeds`` and ``decoder_input_ids``.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertModel
        >>> model = DistilBertModel(DistilBertConfig(vocab_size=9, dim=4, n_layers=1, n_heads=1, hidden_dim=4))
        >>> sorted(accepted_inputs(model))
        ['attention_mask', 'input_ids', 'inputs_embeds', 'position_ids']
    """
    module = unwrap(module)
    if callable(inner := getattr(module, "get_base_model", None)):
        module = inner()  # PEFT's forwards pass on what they do not name
    named, _ = _arguments(module.forward)
    if not named:  # a wrapper set on the instance without functools.wraps hides the names; the class has them
        named, variadic = _arguments(type(module).forward)
        if not named and variadic and not isinstance(module, PreTrainedModel):
            return frozenset(TENSOR_INPUTS)
    return frozenset(TENSOR_INPUTS) & named


def _arguments(function: Any) -> tuple[frozenset[str], bool]:
    """The names of a function's arguments, and whether it takes others beside them."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    named = frozenset(parameter.name for parameter in parameters if parameter.kind not in kinds) - {"self"}
    return named, any(parameter.kind in kinds for parameter in parameters)
