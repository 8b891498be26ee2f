"""Words from a masked language model, against one unbatched forward pass for each word."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lightning_distilbert.data.masked_words import MaskedWords
from lightning_distilbert.data.words import words_of
from lightning_distilbert.errors import DistillationError

TEXTS = [
    "The movie was great, and the actor gave the best scene of his life!",
    "a dull plot",
    "Good music makes people work; 3 children of the city read a zebra story.",
    "the of 7",
    "dog",
]
KEYS = [(row, 0) for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="module")
def model(vocabulary: list[str]) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForMaskedLM(config).eval()


@pytest.fixture
def augmenter(model: BertForMaskedLM, tokenizer: Any):
    def make(**options: Any) -> MaskedWords:
        return MaskedWords(model, tokenizer, **{"precision": "32-true", **options})

    return make


def reference(model: Any, tokenizer: Any, text: str, span: tuple[int, int], k: int, beside: bool) -> set[str]:
    """The `k` best whole words at one word's place, by a loop over the vocabulary."""
    own = tokenizer.tokenize(text)
    masked = [*tokenizer.tokenize(text[: span[0]]), "[MASK]", *tokenizer.tokenize(text[span[1] :])]
    tokens = ["[CLS]", *masked, "[SEP]", *([*own, "[SEP]"] if beside else [])]
    types = [0] * (len(masked) + 2) + [1] * (len(tokens) - len(masked) - 2)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
    with torch.no_grad():
        logits = model(input_ids=ids, token_type_ids=torch.tensor([types])).logits[0, tokens.index("[MASK]")]
    best = [tokenizer.convert_ids_to_tokens(int(index)) for index in logits.argsort(descending=True)]
    words = [word for word in best if word.isalpha() and word != text[slice(*span)].lower()]
    return set(words[:k])


@pytest.mark.parametrize("beside", [True, False])
def test_candidates_are_the_best_whole_words_but_the_word_itself(augmenter, model, tokenizer, beside: bool):
    made = augmenter(k=6, beside=beside)
    count = 0
    for text, candidates in zip(TEXTS, made._prepare(TEXTS), strict=True):
        assert list(candidates) == made.changeable(text)
        for span, words in candidates.items():
            assert {word.lower() for word in words} == reference(model, tokenizer, text, span, 6, beside)
            assert len(words) == 6
            assert all(word[0].isupper() == text[span[0]].isupper() for word in words)
            count += 1
    assert count == 20
    assert "zebra" in [TEXTS[2][slice(*span)] for span in made._prepare(TEXTS)[2]]  # several tokens, one mask


def test_p_is_respected_and_special_tokens_and_pieces_never_appear(augmenter, tokenizer):
    text = " ".join(["the movie was great and the actor gave a long scene"] * 4)
    changeable = augmenter().changeable(text)
    assert len(changeable) == 24
    for p in (0.2, 0.4, 1.0):
        (variants,) = augmenter(n=200, p=p, beside=False).variants([text], [(0, 0)])
        assert text not in variants
        assert len(set(variants)) == len(variants) == 200
        pairs = [zip(variant.split(), text.split(), strict=True) for variant in variants]
        changed = [new != old for pair in pairs for new, old in pair if old not in ("the", "was", "and", "a")]
        assert abs(np.mean(changed) - p) <= 4 * (p * (1 - p) / len(changed)) ** 0.5
        words = {word for variant in variants for word in variant.split()}
        assert words <= {word for word in tokenizer.get_vocab() if word.isalpha()} | set(text.split())
        assert not words & set(tokenizer.all_special_tokens)


def test_all_candidates_come_equally_often_and_no_others(augmenter):
    text = "a dull plot"
    made = augmenter(k=4, n=4000, p=1.0)
    generator = np.random.default_rng(0)
    (words,) = made._prepare([text])
    drawn = [variant.split()[1] for variant in made._draw(text, words, generator)]
    assert set(drawn) == set(words[2, 6])
    assert len(words[2, 6]) == 4
    for word in words[2, 6]:
        assert drawn.count(word) == pytest.approx(1000, abs=4 * (4000 * 0.25 * 0.75) ** 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"n": 3}, {"p": 0.9}, {"k": 2}, {"beside": False}, {"seed": 1}, {"max_length": 12}, {"precision": "bf16-mixed"},
        {"stop_words": {"movie"}},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_each_option_changes_the_result(augmenter, options):
    plain = augmenter(k=8).variants(TEXTS, KEYS)
    assert plain == augmenter(k=8).variants(TEXTS, KEYS)
    assert augmenter(**{"k": 8, **options}).variants(TEXTS, KEYS) != plain


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_and_company_change_nothing(augmenter, batch_size: int, monkeypatch: pytest.MonkeyPatch):
    plain = augmenter().variants(TEXTS, KEYS)
    assert [bool(variants) for variants in plain] == [True, True, True, False, True]
    assert augmenter(batch_size=batch_size).variants(TEXTS, KEYS) == plain
    assert augmenter().variants(TEXTS[::-1], KEYS[::-1]) == plain[::-1]
    monkeypatch.setattr("lightning_distilbert.data.masked_words.MASKED", 4)
    assert augmenter().variants(TEXTS, KEYS) == plain


def test_batches_are_sorted_by_length_and_logits_are_those_of_the_masks_alone(augmenter, model):
    shapes = []

    def watch(module, args, kwargs, output):
        shapes.append((tuple(kwargs["input_ids"].shape), tuple(output.logits.shape)))

    handle = model.register_forward_hook(watch, with_kwargs=True)
    augmenter(batch_size=6).variants(TEXTS, KEYS)
    handle.remove()
    assert [ids[0] for ids, _ in shapes] == [6, 6, 6, 2]
    assert [logits for _, logits in shapes] == [(ids[0], model.config.vocab_size) for ids, _ in shapes]
    widths = [ids[1] for ids, _ in shapes]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 2


def test_equal_texts_are_put_to_the_model_once(augmenter, monkeypatch):
    made = augmenter()
    jobs = []
    monkeypatch.setattr(made, "_candidates", lambda part: jobs.extend(part) or [["cat"]] * len(part))
    variants = made.variants(["a dull plot"] * 3, [(0, 0), (1, 0), (1, 0)])
    assert len(jobs) == 2
    assert variants[1] == variants[2]


def test_words_beyond_the_maximum_length_and_texts_with_a_mask_stay(augmenter):
    text = "movie " * 100
    (variants,) = augmenter(p=1.0, n=2).variants([text], [(0, 0)])
    kept = [word == "movie" for word in variants[0].split()]
    assert kept == [False] * 30 + [True] * 70  # 64 positions, three special tokens, two copies
    (variants,) = augmenter(p=1.0, n=2, beside=False).variants([text], [(0, 0)])
    assert variants[0].split().count("movie") == 100 - 62
    assert augmenter().variants(["a [MASK] movie"], [(0, 0)]) == [[]]


def test_byte_level_vocabulary_with_spaces_in_its_tokens(tmp_path: Path):
    english = ["The great movie was dull", "a long story of the caf\u00e9 and the river", "great rivers, dull movies!"]
    english += ["####"]  # becomes a token, and makes no WordPiece of the vocabulary
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(english * 9, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )  # fmt: skip
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, type_vocab_size=1, pad_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    made = MaskedWords(RobertaForMaskedLM(config), tokenizer, n=40, p=1.0, k=100, precision="32-true")
    assert "####" in tokenizer.get_vocab()
    assert made.max_length == 32  # two of the 34 positions are lost to the padding
    text = "Was the story (so great)  long?" + " river" * 40
    (variants,) = made.variants([text], [(0, 0)])
    pieces = [[variant[slice(*span)] for span in words_of(variant)] for variant in variants]
    seen = {word for words in pieces for word in (words[2], words[4], words[5])}
    beginnings = [token for token in tokenizer.get_vocab() if token.startswith("\u0120")]
    assert seen <= {tokenizer.convert_tokens_to_string([token]).strip() for token in beginnings}
    assert {"caf\u00e9", "movie", "river"} <= seen
    assert all(variant.startswith("Was the ") and " (so " in variant and ")  " in variant for variant in variants)


# -- models that cannot do it ------------------------------------------------------------------------------------------


def test_folder_of_a_whole_masked_language_model(model, tokenizer, tmp_path: Path, augmenter):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = MaskedWords(tmp_path, precision="32-true")
    assert made.variants(TEXTS, KEYS) == augmenter().variants(TEXTS, KEYS)


@pytest.mark.parametrize("kind", ["tiny_bert_dir", "tiny_teacher_dir"])
def test_folder_without_the_head_is_refused(kind: str, request: pytest.FixtureRequest):
    with pytest.raises(DistillationError, match=r"head are missing.*they would be random.*method='words'"):
        MaskedWords(request.getfixturevalue(kind))


def test_models_and_tokenizers_that_do_not_serve(model, tokenizer, vocabulary: list[str]):
    with pytest.raises(DistillationError, match=r"'/no/model' does not exist.*method='words'"):
        MaskedWords("/no/model")
    with pytest.raises(DistillationError, match="needs its tokenizer"):
        MaskedWords(model)
    with pytest.raises(DistillationError, match="BertModel has no masked language modelling head"):
        MaskedWords(BertModel(model.config), tokenizer)
    maskless = copy.deepcopy(tokenizer)
    logging.disable(logging.ERROR)
    maskless.mask_token = None
    with pytest.raises(DistillationError, match="BertTokenizer has no mask token"):
        MaskedWords(model, maskless)
    logging.disable(logging.NOTSET)
    larger = BertTokenizer(vocab={entry: index for index, entry in enumerate([*vocabulary, "extra"])})
    with pytest.raises(DistillationError, match="they do not belong together"):
        MaskedWords(model, larger)
    small = BertTokenizer(vocab={entry: index for index, entry in enumerate([*vocabulary[:5], "film", "##s", "7"])})
    with pytest.raises(DistillationError, match="has 1 whole words"):
        MaskedWords(model, small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": 3}, "max_length=3 leaves no room"),
        ({"p": 2.0}, r"p=2\.0"),
        ({"precision": "16"}, "was given '16'"),
    ],
)
def test_bad_options(augmenter, options, message):
    with pytest.raises(DistillationError, match=message):
        augmenter(**options)
