"""Tiny tokenizers of every kind that BERT's family has, built without a download."""

from __future__ import annotations

import string
from typing import Any

from tokenizers import pre_tokenizers
from transformers import BertTokenizer, DebertaV2Tokenizer, MPNetTokenizer, RobertaTokenizer, XLMRobertaTokenizer

WORDS = "who what where when is was the a of in at by city tower answer caf resume and built".split()
LETTERS = [*string.ascii_letters, *string.digits, *"?.,!-'", "é", "ß", "東", "京", "タ", "ワ"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, "##tower"]


def numbered(entries: list[str]) -> dict[str, int]:
    return {entry: index for index, entry in enumerate(dict.fromkeys(entries))}


def unigram(special: list[str]) -> list[tuple[str, float]]:
    pieces = dict.fromkeys([*special, "▁", *(f"▁{word}" for word in WORDS), *LETTERS])
    return [(piece, -2.0 - 0.01 * index) for index, piece in enumerate(pieces)]


def make_tokenizers(max_length: int = 64) -> dict[str, Any]:
    """Return a tokenizer of each kind, by name."""
    bytes_of = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = {
        "vocab": numbered([*ROBERTA_SPECIAL, *bytes_of, "Ġt", "Ġth", "Ġthe", "Ġc"]),
        "merges": [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "c")],
    }
    size = {"model_max_length": max_length}
    return {
        "bert-uncased": BertTokenizer(vocab=numbered([*BERT_SPECIAL, *PIECES]), **size),
        "bert-cased": BertTokenizer(vocab=numbered([*BERT_SPECIAL, *PIECES]), do_lower_case=False, **size),
        "mpnet": MPNetTokenizer(vocab=numbered([*ROBERTA_SPECIAL, "[UNK]", *PIECES]), **size),
        "roberta": RobertaTokenizer(**byte_level, **size),
        # the white space before a word belongs to the word
        "roberta-untrimmed": RobertaTokenizer(**byte_level, trim_offsets=False, **size),
        "roberta-prefix": RobertaTokenizer(**byte_level, add_prefix_space=True, **size),
        "roberta-left": RobertaTokenizer(**byte_level, padding_side="left", **size),
        "xlm-roberta": XLMRobertaTokenizer(vocab=unigram(["<s>", "<pad>", "</s>", "<unk>"]), **size),
        "deberta-v2": DebertaV2Tokenizer(vocab=unigram(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]), **size),
    }
