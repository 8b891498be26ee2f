"""Students that translate: a pretrained or distilled encoder, and a small new decoder that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

from lightning_distilbert.architectures import encoder_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import building, load_model
from lightning_distilbert.student import Student
from lightning_distilbert.target_tokenizer import (
    END,
    PAD,
    START,
    decoder_config,
    load_target_tokenizer,
    start_token,
)

VOCABULARY = 8000


class TranslationStudent(Student):
    """A student that translates: an encoder made as any other student's, and a BERT decoder with cross-attention.

    The decoder starts from random weights. What it writes are the tokens of a target tokenizer: of one that is there
    (``target_tokenizer``); of the teacher's, if there is a teacher and neither that nor ``vocab_size`` is given; or of
    one that the data train before the first step, with ``vocab_size`` tokens.

    Args:
        encoder: How the encoder is made: a `Student`, or a folder or hub name that is loaded as it is. None cuts half
            of the layers out of the teacher's encoder.
        decoder_layers: The decoder's layers.
        decoder_hidden_size: Its width; None is the encoder's.
        decoder_heads: Its attention heads; None is one for 64 of its width, or one.
        decoder_intermediate_size: The neurons of its feed-forward parts; None is four times its width.
        vocab_size: The tokens that it can write; None is as many as the target tokenizer has, or 8,000.
        max_target_positions: The longest translation in tokens, its end included.
        target_tokenizer: The folder of the target tokenizer, or of a model that has one.
        dropout: The share of values that the decoder's dropouts drop in training; the encoder has its own.
        attn_implementation: transformers' name for how attention is computed; None is transformers' choice.

    Raises:
        DistillationError: If a size is out of range, or the arguments contradict each other.

    Example:
        >>> tiny = {"model_type": "distilbert", "vocab_size": 9, "dim": 4, "n_heads": 1, "n_layers": 1, "hidden_dim": 4}
        >>> student = TranslationStudent(Student(config=tiny), decoder_layers=1, vocab_size=20)
        >>> model = student.build(auto_class="AutoModelForSeq2SeqLM")
        >>> type(model.encoder).__name__, type(model.decoder).__name__, model.config.decoder.vocab_size
        ('DistilBertModel', 'BertLMHeadModel', 20)
    """

    def __init__(
        self,
        encoder: Student | str | None = None,
        decoder_layers: int = 3,
        decoder_hidden_size: int | None = None,
        decoder_heads: int | None = None,
        decoder_intermediate_size: int | None = None,
        vocab_size: int | None = None,
        max_target_positions: int = 128,
        target_tokenizer: str | None = None,
        dropout: float = 0.1,
        attn_implementation: str | None = None,
    ) -> None:
        self.encoder = Student(source=str(encoder)) if isinstance(encoder, (str, Path)) else encoder or Student()
        if isinstance(self.encoder, TranslationStudent) or not isinstance(self.encoder, Student):
            raise DistillationError(f"TranslationStudent(encoder={encoder!r}): give a Student, a folder or a hub name.")
        super().__init__(source=self.encoder.source, dropout=dropout, attn_implementation=attn_implementation)
        sizes = {
            "decoder_layers": decoder_layers,
            "decoder_hidden_size": decoder_hidden_size,
            "decoder_heads": decoder_heads,
            "decoder_intermediate_size": decoder_intermediate_size,
            "vocab_size": vocab_size,
            "max_target_positions": max_target_positions,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise DistillationError(f"TranslationStudent({name}={size}): it has to be 1 or more.")
        if vocab_size is not None and target_tokenizer is not None:
            raise DistillationError(
                f"TranslationStudent(vocab_size={vocab_size}, target_tokenizer={str(target_tokenizer)!r}): the "
                "tokenizer has a size of its own. Leave out one of the two."
            )
        self.decoder_layers = decoder_layers
        self.decoder_hidden_size = decoder_hidden_size
        self.decoder_heads = decoder_heads
        self.decoder_intermediate_size = decoder_intermediate_size
        self.vocab_size = vocab_size
        self.max_target_positions = max_target_positions
        self.target_tokenizer = target_tokenizer

    def _build(
        self, teacher: str | Path | nn.Module | None, auto_class: str, config_overrides: dict[str, Any]
    ) -> PreTrainedModel:
        if auto_class != "AutoModelForSeq2SeqLM":
            raise DistillationError(
                f"A TranslationStudent translates, and the task wants an {auto_class}. Use Student(...), or the task "
                "Translation."
            )
        wholly = self._loads_teacher(teacher)
        if wholly and isinstance(teacher, (str, Path)):
            teacher = load_model(teacher, auto_class, self.encoder.trust_remote_code)
        encoder = self.encoder.build(None if teacher is None else self._encoder_of(teacher), "AutoModel")
        size, special = self._vocabulary(teacher)
        width = self.decoder_hidden_size or encoder.config.hidden_size
        heads = self.decoder_heads or max(1, width // 64)
        if width % heads:
            raise DistillationError(
                f"TranslationStudent: {heads} attention heads do not divide the decoder's width of {width}. Set "
                "decoder_heads."
            )
        config = BertConfig(
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=self.decoder_layers,
            num_attention_heads=heads,
            intermediate_size=self.decoder_intermediate_size or 4 * width,
            hidden_dropout_prob=self.dropout or 0.0,
            attention_probs_dropout_prob=self.dropout or 0.0,
            max_position_embeddings=self.max_target_positions,
            type_vocab_size=1,
            is_decoder=True,
            add_cross_attention=True,
            pad_token_id=special["pad_token_id"],
        )
        with building():
            joined = EncoderDecoderConfig.from_encoder_decoder_configs(
                encoder.config, config, **special, **config_overrides
            )
            model = EncoderDecoderModel(config=joined, encoder=encoder, decoder=BertLMHeadModel(config))
        model.config.architectures = [type(model).__name__]
        return model.train()

    def _loads_teacher(self, teacher: Any) -> bool:
        """Tell whether the whole teacher is needed, and not its config alone."""
        return teacher is not None and self.encoder.source is None and self.encoder.config is None

    def _encoder_of(self, teacher: Any) -> Any:
        if isinstance(teacher, (str, Path)):  # then it is not needed
            return None
        encoder = encoder_of(teacher)
        config: Any = getattr(encoder, "config", None)
        if self._loads_teacher(teacher) and getattr(config, "is_encoder_decoder", False):
            raise DistillationError(
                f"No student is cut out of the encoder of a {config.model_type!r} model. Name the encoder: "
                "TranslationStudent(encoder=...), with a BERT-family model."
            )
        return encoder

    def _vocabulary(self, teacher: Any) -> tuple[int, dict[str, int]]:
        """Return the size of the decoder's vocabulary, and its special tokens."""
        own = {"decoder_start_token_id": START, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
        if self.vocab_size is not None:
            return self.vocab_size, own
        # the folder of a model says more than its tokenizer: how many tokens its decoder knows, and how it begins
        config: Any = None if self.target_tokenizer is None else _config_of(self.target_tokenizer)
        if self.target_tokenizer is not None and not getattr(config, "is_encoder_decoder", False):
            return _of_tokenizer(self.target_tokenizer)
        if config is None:
            config = getattr(teacher, "config", None) if isinstance(teacher, nn.Module) else _config_of(teacher)
        if not getattr(config, "is_encoder_decoder", False):
            return VOCABULARY, own
        start = start_token(config)
        named = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
        return decoder_config(config).vocab_size, {"decoder_start_token_id": start, "bos_token_id": start} | named


def _of_tokenizer(folder: str) -> tuple[int, dict[str, int]]:
    tokenizer = load_target_tokenizer(folder)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    ids = {"decoder_start_token_id": start, "eos_token_id": tokenizer.eos_token_id}
    ids |= {"bos_token_id": start, "pad_token_id": tokenizer.pad_token_id}
    if missing := [name for name, index in ids.items() if index is None]:
        raise DistillationError(
            f"The target tokenizer {str(folder)!r} has no {missing[0].removesuffix('_id')}: a translation needs a "
            "token for its end, and padding."
        )
    return len(tokenizer), ids


def _config_of(source: Any) -> Any:
    from lightning_distilbert.teacher import load_config

    return None if source is None else load_config(str(source))
