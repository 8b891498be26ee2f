"""Words of a text replaced by what a masked language model expects in their place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_distilbert.architectures import backbone, logits_at
from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
from lightning_distilbert.data.masking import BEGINNINGS, CONTINUATION, marks_of
from lightning_distilbert.data.words import STOP_WORDS, Span, WordAugmenter, in_case_of, is_word
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.folder import load_tokenizer
from lightning_distilbert.loading import load_model
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.tasks.base import call_model

PRECISIONS = ("bf16-mixed", "32-true")
MASKED = 8192  # texts with a mask that are tokenised together, and sorted by length
SPELLINGS = 4  # how often one word may stand in a vocabulary: "film", "Film", "FILM", and one more


class MaskedWords(WordAugmenter):
    r"""Words replaced by what a masked language model expects in their place (Jiao et al. 2020, Algorithm 1).

    Each changeable word is masked on its own, and its candidates are the `k` most probable words other than itself. A
    variant replaces each word with probability `p` by one of its candidates, all equally probable. Candidates are whole
    words of letters, in the vocabulary's own spelling but for a capital that the replaced word has.

    Where this differs from the original code:

    - A word of several tokens becomes one mask too; the original takes its nearest GloVe vectors.
    - The word itself is no candidate, so that `p` is the share of words that really change.
    - The text keeps its case, spacing and punctuation; the original writes lower-case tokens with spaces between.

    A text that holds the mask token itself is left alone, and so are words beyond `max_length`.

    The draws are the same whatever the `batch_size`; the rounding of the model is not, and now and then it decides
    which word is the last of the `k`. From batches of 128 to batches of 16 that changed the candidates of one word in a
    thousand in ``"32-true"`` and of one in ten in ``"bf16-mixed"``, for a MiniLM with a random head.

    Args:
        model: A folder or hub name of a masked language model, whole with its head; or the model itself, which is put
            into eval mode and runs where it is.
        tokenizer: Its tokenizer; None loads that of the folder.
        n: Variants that are drawn of each text; the paper's code takes 10 to 30, by the size of the task.
        p: The probability that a word changes.
        k: Candidates for each word.
        beside: Whether the model sees the text as it is beside the masked one, as in the paper's code: candidates are
            then nearer to the word. False shows it the masked text alone, as the algorithm in the paper says, at half
            the cost.
        seed: Of the draws.
        batch_size: Masked texts in one call of the model.
        max_length: Tokens that the model sees at most, of both texts together.
        precision: ``"bf16-mixed"`` or ``"32-true"``; None takes `auto_precision`.
        stop_words: Words in lower case that stay.

    Raises:
        DistillationError: If an option is out of range, the model has no masked language modelling head, or the
            tokenizer does not go with it.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM, BertTokenizer
        >>> entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "movie", "great", "##s"]
        >>> tokenizer = BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)})
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> augmenter = MaskedWords(BertForMaskedLM(config), tokenizer, n=50, p=1.0, k=2)
        >>> sorted(augmenter.variants(["The Film."], keys=[(0, 0)])[0])
        ['The Great.', 'The Movie.']
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: Any = None,
        n: int = 20,
        p: float = 0.4,
        k: int = 15,
        beside: bool = True,
        seed: int = 0,
        batch_size: int = 128,
        max_length: int = 512,
        precision: str | None = None,
        stop_words: Collection[str] = STOP_WORDS,
    ) -> None:
        super().__init__(n, p, seed, stop_words)
        for name, size in {"k": k, "batch_size": batch_size, "max_length": max_length}.items():
            if size < 1:
                raise DistillationError(f"{name}={size}: it has to be 1 or more.")
        if precision is not None:
            check_choice("MaskedWords(precision=...)", precision, PRECISIONS)
        self.k = k
        self.beside = beside
        self.batch_size = batch_size
        self.precision = precision or auto_precision()
        self.model, self.tokenizer = _load(model, tokenizer)
        self.max_length = min(max_length, self.tokenizer.model_max_length, _positions(self.model))
        room = self.tokenizer.num_special_tokens_to_add(pair=beside)
        if self.max_length <= room:
            raise DistillationError(
                f"max_length={self.max_length} leaves no room: the tokenizer adds {room} special tokens."
            )
        words = _whole_words(self.tokenizer)
        if len(words) < 2:
            raise DistillationError(
                f"The vocabulary of {self.tokenizer.name_or_path!r} has {len(words)} whole words: none can be replaced."
            )
        self._ids = torch.tensor(list(words), device=self.model.device)
        self._words = list(words.values())

    def _prepare(self, texts: Sequence[str]) -> list[dict[Span, list[str]]]:
        found: dict[str, dict[Span, list[str]]] = {text: {} for text in texts}
        mask = self.tokenizer.mask_token
        jobs = [(text, span) for text in found if mask not in text for span in self.changeable(text)]
        for start in range(0, len(jobs), MASKED):
            part = jobs[start : start + MASKED]
            for (text, span), candidates in zip(part, self._candidates(part), strict=True):
                if candidates:
                    found[text][span] = candidates
        return [found[text] for text in texts]

    def _draw(self, text: str, words: dict[Span, list[str]], generator: np.random.Generator) -> list[str]:
        if not words:
            return []
        shape = (self.n, len(words))
        changed = generator.random(shape) < self.p
        counts = np.array([len(candidates) for candidates in words.values()])
        picks = (generator.random(shape) * counts).astype(int)
        drawn = []
        for changes, choices in zip(changed.tolist(), picks.tolist(), strict=True):
            pieces, end = [], 0
            for (span, candidates), change, choice in zip(words.items(), changes, choices, strict=True):
                if change:
                    pieces += [text[end : span[0]], candidates[choice]]
                    end = span[1]
            drawn.append("".join([*pieces, text[end:]]))
        return drawn

    def _candidates(self, jobs: Sequence[tuple[str, Span]]) -> list[list[str]]:
        """Return the candidates of words, each given by its text and place."""
        mask = self.tokenizer.mask_token
        masked = [f"{text[:start]}{mask}{text[end:]}" for text, (start, end) in jobs]
        pairs = [text for text, _ in jobs] if self.beside else None
        data = encode(self.tokenizer, masked, pairs, self.max_length, name="masked words")
        candidates: list[list[str]] = [[] for _ in jobs]
        # the longest first: memory runs out at once or never
        order = np.argsort(-data.lengths, kind="stable")
        order = order[[self.tokenizer.mask_token_id in data[int(index)]["input_ids"] for index in order]]
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size].tolist()
            for number, best in zip(numbers, self._best(data, numbers), strict=True):
                text, (begin, end) = jobs[number]
                word = text[begin:end]
                others = [self._words[index] for index in best if self._words[index].casefold() != word.casefold()]
                candidates[number] = sorted({in_case_of(word, other) for other in others[: self.k]})
        return candidates

    def _best(self, data: EncodedDataset, numbers: list[int]) -> list[list[int]]:
        """Return the most probable words at the mask of each row, as places in the list of words."""
        device = self._ids.device
        batch = pad_batch(data[numbers], Padding.of(self.tokenizer))
        batch = {name: values.to(device) for name, values in batch.items()}
        positions = batch["input_ids"] == self.tokenizer.mask_token_id
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")
        with torch.inference_mode(), autocast, logits_at(self.model, positions):
            logits = call_model(self.model, batch).logits
        # one more for each spelling of the word itself, which is dropped afterwards
        best = logits[:, self._ids].float().topk(min(self.k + SPELLINGS, len(self._words))).indices
        return best.tolist()


def _load(model: str | Path | PreTrainedModel, tokenizer: Any) -> tuple[PreTrainedModel, Any]:
    """Return a masked language model and its tokenizer, after checking that they are that."""
    hint = "Give a masked language model, such as bert-base-uncased; method='words' (CorpusWords) needs no model."
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise DistillationError("A model that is an object needs its tokenizer: MaskedWords(model, tokenizer).")
        if model.get_output_embeddings() is None:
            raise DistillationError(f"{type(model).__name__} has no masked language modelling head. {hint}")
        if getattr(model.config, "fresh_head", False):
            raise DistillationError(f"The masked language modelling head of this model was never trained. {hint}")
    else:
        source = model
        try:
            model = load_model(source, "AutoModelForMaskedLM", whole=True)
            model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        except DistillationError as error:
            raise DistillationError(f"{error} {hint}") from error
        tokenizer = load_tokenizer(source) if tokenizer is None else tokenizer
    if tokenizer.mask_token_id is None:
        raise DistillationError(f"The tokenizer {type(tokenizer).__name__} has no mask token. {hint}")
    embeddings = model.get_input_embeddings()
    highest = max(tokenizer.get_vocab().values())
    if isinstance(embeddings, nn.Embedding) and highest >= embeddings.num_embeddings:
        raise DistillationError(
            f"The tokenizer has ids up to {highest} and {type(model).__name__} {embeddings.num_embeddings} embeddings: "
            "they do not belong together. Give the tokenizer that the model was trained with."
        )
    return model.eval(), tokenizer


def _positions(model: PreTrainedModel) -> int:
    """Return how many tokens the learned positions of a model allow; RoBERTa and MPNet count from the padding on."""
    for name, module in backbone(model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", 1 << 30))


def _whole_words(tokenizer: Any) -> dict[int, str]:
    """Return the whole words of letters in a vocabulary, by their ids."""
    vocabulary = tokenizer.get_vocab()
    marked = marks_of(vocabulary) == "beginnings"
    special = set(tokenizer.all_special_ids)
    found = {}
    for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        # byte-level tokens are spelt in letters of their own, and have to be read as text first
        word = tokenizer.convert_tokens_to_string([token]).strip() if marked else token
        begins = token.startswith(BEGINNINGS) if marked else not token.startswith(CONTINUATION)
        if begins and index not in special and is_word(word):
            found[index] = word
    return found
