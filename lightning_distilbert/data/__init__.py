"""Data modules, and what they are made of: readers, encoded rows and batches of similar length."""

from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.batching import LengthGroupedSampler, padding_share
from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit, read_beir
from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
from lightning_distilbert.data.masked_lm import MaskedLMData
from lightning_distilbert.data.masking import Masking
from lightning_distilbert.data.readers import read_rows
from lightning_distilbert.data.retrieval import RetrievalData
from lightning_distilbert.data.sources import open_splits
from lightning_distilbert.data.text_classification import TextClassificationData

__all__ = [
    "BeirFolder",
    "EncodedDataset",
    "LengthGroupedSampler",
    "MaskedLMData",
    "Masking",
    "Padding",
    "RetrievalData",
    "RetrievalSplit",
    "TextClassificationData",
    "TextData",
    "encode",
    "open_splits",
    "pad_batch",
    "padding_share",
    "read_beir",
    "read_rows",
]
