"""Data modules, and what they are made of: readers, encoded rows and batches of similar length.

Names are imported when they are first used, so that what needs no torch here, such as `tags` and `split_words`, can be
imported without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_distilbert._lazy import attach

if TYPE_CHECKING:
    from lightning_distilbert.data.base import TextData
    from lightning_distilbert.data.batching import LengthGroupedSampler, padding_share
    from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit, read_beir
    from lightning_distilbert.data.conll import read_conll
    from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
    from lightning_distilbert.data.intents import read_atis, read_clinc150
    from lightning_distilbert.data.masked_lm import MaskedLMData
    from lightning_distilbert.data.masking import Masking
    from lightning_distilbert.data.question_answering import QuestionAnsweringData
    from lightning_distilbert.data.readers import read_rows
    from lightning_distilbert.data.reranking import RerankingData
    from lightning_distilbert.data.retrieval import RetrievalData
    from lightning_distilbert.data.sources import open_splits
    from lightning_distilbert.data.squad import flatten_squad, read_questions
    from lightning_distilbert.data.text_classification import TextClassificationData
    from lightning_distilbert.data.token_classification import TokenClassificationData
    from lightning_distilbert.data.translation import TranslationData

_HOME = {
    "BeirFolder": "beir",
    "EncodedDataset": "encoding",
    "LengthGroupedSampler": "batching",
    "MaskedLMData": "masked_lm",
    "Masking": "masking",
    "Padding": "encoding",
    "QuestionAnsweringData": "question_answering",
    "RerankingData": "reranking",
    "RetrievalData": "retrieval",
    "RetrievalSplit": "beir",
    "TextClassificationData": "text_classification",
    "TextData": "base",
    "TokenClassificationData": "token_classification",
    "TranslationData": "translation",
    "encode": "encoding",
    "flatten_squad": "squad",
    "open_splits": "sources",
    "pad_batch": "encoding",
    "padding_share": "batching",
    "read_atis": "intents",
    "read_beir": "beir",
    "read_clinc150": "intents",
    "read_conll": "conll",
    "read_questions": "squad",
    "read_rows": "readers",
}

__all__ = [
    "BeirFolder",
    "EncodedDataset",
    "LengthGroupedSampler",
    "MaskedLMData",
    "Masking",
    "Padding",
    "QuestionAnsweringData",
    "RerankingData",
    "RetrievalData",
    "RetrievalSplit",
    "TextClassificationData",
    "TextData",
    "TokenClassificationData",
    "TranslationData",
    "encode",
    "flatten_squad",
    "open_splits",
    "pad_batch",
    "padding_share",
    "read_atis",
    "read_beir",
    "read_clinc150",
    "read_conll",
    "read_questions",
    "read_rows",
]


__getattr__, __dir__ = attach(__name__, _HOME)
