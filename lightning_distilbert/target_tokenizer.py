"""The tokenizer of the language that is translated into: trained, kept with a module, and saved beside its student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import load_tokenizer

FOLDER = "target_tokenizer"  # within the folder of a saved model
# the ids are their places here
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNKNOWN, START, END = range(len(SPECIAL))


def train_target_tokenizer(
    texts: Iterable[str], vocab_size: int = 8000, max_length: int = 128
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of sub-words (byte-pair encoding) that keeps capitals, accents and all else that is written.

    White space goes along with the word after it and punctuation stands alone, so that a decoded text is the text. Each
    text gets an end token. The same texts give the same tokenizer, in any process.

    Args:
        texts: The texts.
        vocab_size: Tokens at most; few texts give fewer. Where the texts have more characters than fit, the rarest are
            left out: each is an ``<unk>`` then.
        max_length: The longest text in tokens, as the tokenizer will state it.

    Returns:
        The tokenizer, with ``<pad>``, ``<unk>``, ``<s>`` and ``</s>`` as its first tokens.

    Raises:
        DistillationError: If `vocab_size` leaves no room beside these, or there is no text.

    Example:
        >>> tokenizer = train_target_tokenizer(["Ein Hund.", "Eine Katze."], vocab_size=60)
        >>> ids = tokenizer("Eine Katze.")["input_ids"]
        >>> ids[-1] == tokenizer.eos_token_id, tokenizer.decode(ids, skip_special_tokens=True)
        (True, 'Eine Katze.')
    """
    if vocab_size <= len(SPECIAL):
        raise DistillationError(
            f"vocab_size={vocab_size} leaves no room beside the {len(SPECIAL)} special tokens. Thousands are usual."
        )
    bare = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    bare.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    bare.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")])
    bare.decoder = decoders.Metaspace()
    texts = list(texts)
    options: dict[str, Any] = {"special_tokens": list(SPECIAL), "show_progress": False}
    bare.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **options))
    if bare.get_vocab_size() > vocab_size:  # the trainer keeps every character, however rare
        kept = _commonest(bare, texts, vocab_size - len(SPECIAL))
        # of equally rare ones limit_alphabet alone would keep others in each process
        options |= {"initial_alphabet": kept, "limit_alphabet": len(kept)}
        bare.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **options))
    if bare.get_vocab_size() == len(SPECIAL):
        raise DistillationError("There is no text to train a tokenizer on: each one is empty.")
    end = SPECIAL[END]
    bare.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, END)]
    )
    pad, unknown, start, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token=pad,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        model_max_length=max_length,
        padding_side="right",
    )


def _commonest(tokenizer: Any, texts: Sequence[str], number: int) -> list[str]:
    """Return the most frequent characters of what a tokenizer splits, of equal ones the lower code points."""
    counts: Counter[str] = Counter()
    for text in texts:
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            counts.update(piece)
    return sorted(counts, key=lambda character: (-counts[character], character))[:number]


def load_target_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer with which a saved model's translations are written.

    Args:
        folder: The folder of a model, with a sub-folder ``target_tokenizer``; one whose tokenizer serves both languages
            (Marian's); or the folder of a tokenizer itself.

    Raises:
        DistillationError: If there is none.
    """
    inner = Path(folder).expanduser() / FOLDER
    return load_tokenizer(inner if inner.is_dir() else folder)


def target_tokenizer(module: Any) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a module's translations; None where it is not known yet.

    It is the one that the data trained or a checkpoint brought, else that of the student's description, else, if the
    student was built with the teacher's vocabulary, the teacher's.

    Args:
        module: A `DistillationModule`.
    """
    known: PreTrainedTokenizerBase | None = vars(module).get("_target_tokenizer")
    if known is None and (source := _source(module)) is not None:
        known = load_target_tokenizer(source)
        set_target_tokenizer(module, known)
    return known


def _source(module: Any) -> str | None:
    spec = getattr(module, "student_spec", None)
    if (named := getattr(spec, "target_tokenizer", None)) is not None:
        return str(named)
    # a student that is a whole model brings its own; of another `source` is its encoder alone
    source = getattr(spec, "source", None)
    if source is not None and not hasattr(spec, "target_tokenizer"):
        return str(source)
    if getattr(spec, "vocab_size", 0) is None and module.distiller is not None:
        teacher = module.distiller.teacher.source
        return teacher if isinstance(teacher, str) else None
    return None


def set_target_tokenizer(module: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a module the tokenizer of its translations.

    Args:
        module: A `DistillationModule`.
        tokenizer: The tokenizer.

    Raises:
        DistillationError: If it does not fit the student's decoder.
    """
    check_decoder(module.student.config, tokenizer)
    module._target_tokenizer = tokenizer


def check_decoder(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids the decoder of a model does not know, or takes for others.

    Args:
        config: The model's config.
        tokenizer: The tokenizer of its translations.

    Raises:
        DistillationError: If it has more tokens than the decoder, or another end or padding.
    """
    size, tokens = decoder_config(config).vocab_size, len(tokenizer)
    if tokens > size:
        raise DistillationError(
            f"The target tokenizer has {tokens} tokens and the student's decoder only {size}. Give the student this "
            "tokenizer, TranslationStudent(target_tokenizer=...), or as large a vocab_size."
        )
    for name in ("eos_token_id", "pad_token_id"):
        ours, theirs = getattr(config, name, None), getattr(tokenizer, name)
        if ours is not None and ours != theirs:
            raise DistillationError(
                f"The student's decoder has {name}={ours}, and the target tokenizer {theirs}: they belong to two "
                "different models. Give the student this tokenizer, TranslationStudent(target_tokenizer=...)."
            )


def decoder_config(config: Any) -> Any:
    """Return the part of a model's config that describes its decoder."""
    return getattr(config, "decoder", config)


def target_positions(config: Any) -> int:
    """Return how many tokens of a translation a model's decoder has positions for.

    Args:
        config: The model's config; one that states no limit has as good as none.
    """
    return int(getattr(decoder_config(config), "max_position_embeddings", None) or 2**20)


def start_token(config: Any) -> int:
    """Return the token that a model's decoder begins with.

    Args:
        config: The model's config.

    Raises:
        DistillationError: If it names none.
    """
    for name in ("decoder_start_token_id", "bos_token_id"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    raise DistillationError(
        f"The config of the {config.model_type!r} model names no decoder_start_token_id, so that nobody knows what a "
        "translation begins with. Set it before the model is used."
    )


def shift_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """Return what a decoder reads while it learns to write the labels: all of them one place later.

    Args:
        labels: The tokens of the translations, -100 after their ends, of shape ``(batch, tokens)``.
        start: The token that each begins with.
        pad: The token in place of -100.

    Example:
        >>> import torch
        >>> shift_right(torch.tensor([[7, 3, -100]]), start=2, pad=0).tolist()
        [[2, 7, 3]]
    """
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == -100, pad)


def check_same_target(module: Any) -> None:
    """Refuse a teacher that writes other tokens than the student, where they are compared token by token.

    Args:
        module: A `DistillationModule` with a teacher.

    Raises:
        DistillationError: If the teacher does not translate, or its tokens are others.
    """
    distiller = module.distiller
    if distiller is None or "logits" not in distiller.requires:
        return
    teacher = distiller.teacher
    config, own = getattr(teacher.model, "config", None), module.student.config
    if not getattr(config, "is_encoder_decoder", False):
        raise DistillationError(
            f"The teacher {teacher.name} is a {type(teacher.model).__name__}, which does not translate. Take an "
            "encoder with a decoder, or objectives on hidden states alone."
        )
    remedy = (
        "Compared token by token they would speak of different words. Build the student with the teacher's vocabulary "
        "(TranslationStudent without vocab_size and target_tokenizer), or let the teacher translate the training texts "
        "(lightning-distilbert translate-corpus) and train on these."
    )
    sizes = decoder_config(own).vocab_size, decoder_config(config).vocab_size
    if sizes[0] != sizes[1]:
        raise DistillationError(
            f"The student writes {sizes[0]} tokens and the teacher {teacher.name} {sizes[1]}: two target tokenizers. "
            f"{remedy}"
        )
    if start_token(own) != start_token(config):
        raise DistillationError(
            f"The student's translations begin with the token {start_token(own)}, those of {teacher.name} with "
            f"{start_token(config)}. {remedy}"
        )
    ours = target_tokenizer(module)
    if isinstance(teacher.source, str) and ours is not None:
        theirs = load_target_tokenizer(teacher.source)
        if theirs.get_vocab() != ours.get_vocab():
            raise DistillationError(
                f"The target tokenizers of the student and of {teacher.name} have {len(ours)} and {len(theirs)} tokens "
                f"with other ids. {remedy}"
            )
