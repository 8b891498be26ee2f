"""Sentence vectors of a whole corpus: no more padding than a batch needs, and a file that survives interruptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_distilbert.data.corpus import tokenizer_fingerprint
from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
from lightning_distilbert.data.inputs import split_pairs
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.prediction import evaluating, room
from lightning_distilbert.retrieval.vector_file import VectorFile, hash_texts, hash_weights

if TYPE_CHECKING:
    from lightning_distilbert.module import DistillationModule

Encoder: TypeAlias = "DistillationModule | str | Path"
SHARD = 16384  # texts that are tokenised and sorted together: what is held in memory beside the result
# tokens in a batch: a processor is fastest where activations fit its cache, a graphics processor where it is busy
BUDGETS = {"cpu": 2048}
OTHER_BUDGET = 32768
PRECISIONS = ("32-true", "bf16-mixed")


def encode_corpus(
    encoder: Encoder,
    texts: Sequence[str],
    max_length: int | None = None,
    precision: str | None = "32-true",
    dtype: str = "float32",
    batch_tokens: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    name: str = "corpus",
) -> np.ndarray:
    """Embed texts as an encoder compares them, in the order of the texts.

    Batches hold texts of the same length, or nearly so, and as many of them as make ``batch_tokens`` tokens. With
    ``output`` the vectors go to a file as they are made, and what an interrupted run left there is gone on with.

    Args:
        encoder: A `DistillationModule` of the task `Retrieval`, or the folder of a saved student or of any other
            sentence encoder; see `open_encoder`.
        texts: The texts.
        max_length: Tokens kept of a text at most; None is what tokenizer and model allow.
        precision: ``"32-true"``; ``"bf16-mixed"``, which is for processors with bfloat16 units, and changes the
            vectors a little; or None, which takes it where the processor has such units.
        dtype: Of the result: ``"float32"``, or ``"float16"`` for half the size.
        batch_tokens: Tokens in a batch, padding included; None is 2048 on a processor and 32768 elsewhere.
        output: A file with the suffix ``.npy`` for the vectors; None keeps them in memory. A finished one of the same
            texts, model and options is taken as it is.
        overwrite: Whether a finished ``output`` that is of something else, or damaged, may be replaced.
        name: What the progress bar says.

    Returns:
        Shape ``(texts, width)``; with ``output`` mapped from the file, and read-only.

    Raises:
        DistillationError: If there are no texts, an option is bad, a vector is not finite, or ``output`` holds
            something else.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel, BertTokenizer
        >>> folder, entries = tempfile.mkdtemp(), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film"]
        >>> _ = BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}).save_pretrained(folder)
        >>> config = BertConfig(vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> BertModel(config).save_pretrained(folder)
        >>> encode_corpus(folder, ["a film", "film", "a"], output=f"{folder}/corpus.npy").shape
        (3, 4)
    """
    check_choice("encode_corpus(dtype=...)", dtype, ("float32", "float16"))
    precision = precision or auto_precision()
    check_choice("encode_corpus(precision=...)", precision, PRECISIONS)
    if batch_tokens is not None and batch_tokens < 1:
        raise DistillationError(f"batch_tokens={batch_tokens}: it must be at least 1, or None.")
    texts, pairs = split_pairs(texts)
    if not texts or pairs is not None:
        found = "no texts" if pairs is None else "pairs of texts"
        raise DistillationError(f"{name}: there are {found}. Give single texts, and at least one.")
    module = open_encoder(encoder)
    longest = room(module, max_length)
    budget = batch_tokens or BUDGETS.get(module.device.type, OTHER_BUDGET)
    file = None if output is None else VectorFile(output, overwrite)
    parts: list[np.ndarray] = []
    done = 0
    if file is not None:
        made_of = {
            "texts": hash_texts(texts),
            "model": hash_weights(module.student),
            "task": [type(module.task).__name__, module.task.pooling, getattr(module.task, "normalize", True)],
            "tokenizer": tokenizer_fingerprint(module.tokenizer),
            "max_length": longest,
            "precision": precision,
            "dtype": dtype,
        }
        if file.finished(made_of):
            return file.vectors()
        done = file.resume(made_of, SHARD)
    with tqdm(total=len(texts), initial=done, desc=f"encode {name}", unit=" texts", delay=1, leave=False) as bar:
        for start in range(done, len(texts), SHARD):
            rows = encode(module.tokenizer, texts[start : start + SHARD], None, longest, name=name)
            vectors = encode_rows(module, rows, budget, precision, bar).astype(dtype, copy=False)
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                place = start + int(bad.argmax())
                raise DistillationError(
                    f"{name}: the vector of text {place} ({texts[place][:60]!r}) is NaN or infinite, and cannot be "
                    f"compared. The model may have diverged, or the vector is too large for {dtype}."
                )
            if file is None:
                parts.append(vectors)
            else:
                file.append(vectors, len(texts))
    if file is not None:
        file.finish()
        return file.vectors()
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def open_encoder(source: Encoder, device: str | None = None) -> DistillationModule:
    """Return a module that embeds texts.

    A folder that this package did not save is read as sentence-transformers does: its pooling (the mean where it names
    none), whether vectors are scaled to length 1, and how many tokens it takes.

    Args:
        source: A module of the task `Retrieval`, which is returned as it is, or a folder.
        device: Where to put what is loaded; None is the graphics processor if there is one.

    Raises:
        DistillationError: If it gives no sentence vectors, or cannot be loaded.
    """
    from lightning_distilbert.module import CHECKPOINT_KEY, DistillationModule
    from lightning_distilbert.saved import TASKS, load, read_config
    from lightning_distilbert.tasks.retrieval import Retrieval

    if isinstance(source, DistillationModule):
        module, name = source, "The module"
    else:
        folder, name = Path(source).expanduser(), str(source)
        config = read_config(folder)
        # an encoder that was trained with another head may still name that one in its config
        task = None if CHECKPOINT_KEY in config else TASKS["AutoModel"](folder, config)
        module = load(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"), task=task)
    if not isinstance(module.task, Retrieval):
        raise DistillationError(
            f"{name} is of the task {type(module.task).__name__}, which gives no sentence vectors. "
            "Give one of the task Retrieval."
        )
    return module


def encode_rows(module: Any, rows: EncodedDataset, budget: int, precision: str, bar: Any) -> np.ndarray:
    """Embed encoded rows in batches of similar length, and return the vectors in their order, in float32."""
    padding = Padding.of(module.tokenizer)
    mixed = torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    vectors: np.ndarray | None = None
    with evaluating(module), torch.inference_mode(), mixed:
        for places in batches_of(rows.lengths, budget):
            batch = {key: value.to(module.device) for key, value in pad_batch(rows[places], padding).items()}
            found = module(batch)["embedding"].float().cpu().numpy()
            if vectors is None:
                vectors = np.empty((len(rows), found.shape[1]), dtype=np.float32)
            vectors[places] = found
            bar.update(len(places))
    if vectors is None:
        raise DistillationError("There are no rows to embed.")
    return vectors


def batches_of(lengths: np.ndarray, budget: int) -> Iterator[list[int]]:
    """Yield rows in batches of similar length that pad to no more tokens than the budget, or to one row.

    The longest come first, so that memory runs out at once or never; the others come in a mixed order that is the same
    each time, so that the speed that a progress bar shows is that of the whole.

    Example:
        >>> list(batches_of(np.array([2, 9, 3, 8]), budget=18))
        [[1, 3], [2, 0]]
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = [0]
    while cuts[-1] < len(order):
        longest = max(1, int(lengths[order[cuts[-1]]]))
        cuts.append(min(cuts[-1] + max(1, budget // longest), len(order)))
    mixed = 1 + np.random.default_rng(0).permutation(max(0, len(cuts) - 2))
    for batch in [0, *mixed.tolist()][: len(cuts) - 1]:
        yield order[cuts[batch] : cuts[batch + 1]].tolist()
