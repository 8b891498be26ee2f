"""Data modules, and what they are made of: readers, encoded rows and batches of similar length."""

from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.batching import LengthGroupedSampler, padding_share
from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit, read_beir
from lightning_distilbert.data.conll import read_conll
from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
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
    "encode",
    "flatten_squad",
    "open_splits",
    "pad_batch",
    "padding_share",
    "read_beir",
    "read_conll",
    "read_questions",
    "read_rows",
]
