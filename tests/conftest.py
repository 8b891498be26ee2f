"""Fixtures that many tests share: an offline environment and tiny BERT folders with a real WordPiece tokenizer."""

from __future__ import annotations

import os

# before transformers is imported anywhere: it reads these once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
)

# the models are tiny: a second thread costs more than it brings, and `make test` runs one process a core
torch.set_num_threads(1)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# enough English for sentences of the tests to be words, and not only letters
WORDS = """
the a an of to and in is it that this for with on as was are be not no very more most all some one two three
film movie story actor plot scene music good great fine best bad poor worst dull bright long short
loss model layer teacher student tensor value mean sum number list file data text word sentence question answer
return compute read write make take give find show use new old first last big small fast slow
cat dog house tree water city day night man woman child people world time year life work
""".split()
SUFFIXES = ["##s", "##ed", "##ing", "##er", "##est", "##ly"]


def tiny_vocabulary() -> list[str]:
    """Return about 200 WordPiece entries; every lower-case word can be spelt with them, so that none is unknown."""
    letters = list(string.ascii_lowercase + string.digits)
    pieces = [f"##{letter}" for letter in letters]
    entries = [*SPECIAL_TOKENS, *".,!?'-", *letters, *pieces, *WORDS, *SUFFIXES]
    return list(dict.fromkeys(entries))


def save_tiny_tokenizer(folder: Path) -> Path:
    """Save the tokenizer of the tiny models, and return the folder."""
    vocabulary = {entry: index for index, entry in enumerate(tiny_vocabulary())}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    return folder


def save_tiny_bert(
    folder: Path, num_labels: int | None = None, seed: int = 0, mlm: bool = False, spans: bool = False
) -> Path:
    """Save a random BERT with its tokenizer, the same one for the same seed.

    Args:
        folder: Where to save; created where it is missing.
        num_labels: For a `BertForSequenceClassification` with that many labels; None saves a bare `BertModel`.
        seed: Seed of the weights.
        mlm: For a `BertForMaskedLM`.
        spans: For a `BertForQuestionAnswering`.

    Returns:
        The folder.
    """
    config = BertConfig(
        vocab_size=len(tiny_vocabulary()),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        # five times the usual value, so that layers differ and outputs are far from uniform
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if mlm:
            model = BertForMaskedLM(config)
        elif spans:
            model = BertForQuestionAnswering(config)
        elif num_labels is None:
            model = BertModel(config)
        else:
            config.num_labels = num_labels
            model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    return save_tiny_tokenizer(folder)


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    """Make each test's random numbers independent of which tests ran before it in the same process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    """Return the WordPiece entries of the tiny models, in the order of their ids."""
    return tiny_vocabulary()


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random `BertModel` (4 layers, 32 wide, 2 heads, 64 positions) and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def tiny_teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random `BertForSequenceClassification` of two labels and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "teacher", num_labels=2)


@pytest.fixture(scope="session")
def tiny_mlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random `BertForMaskedLM` and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "mlm", mlm=True)


@pytest.fixture(scope="session")
def tiny_reader_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random `BertForQuestionAnswering` and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "reader", spans=True)


@pytest.fixture(scope="session")
def tiny_tagger_dir(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a `BertForTokenClassification` of five named tags, with a random head."""
    folder = tmp_path_factory.mktemp("tiny") / "tagger"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names = dict(enumerate(["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]))
        BertForTokenClassification.from_pretrained(tiny_bert_dir, id2label=names).save_pretrained(folder)
    return save_tiny_tokenizer(folder)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a saved `BertTokenizer` and no model."""
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")
