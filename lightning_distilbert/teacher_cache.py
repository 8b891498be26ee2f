"""What a teacher said of each text, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.outputs import span_classes
from lightning_distilbert.placing import check_writable
from lightning_distilbert.row_store import KEY_BYTES, RowStore
from lightning_distilbert.signals import Signals
from lightning_distilbert.taps import Paths, position_mask

FORMAT = 2
META = "signals.json"
DTYPES = {"logits": "float32", "embedding": "float32", "hidden_states": "float16"}
MAX_CLASSES = 1000  # more are a vocabulary: a row would take megabytes
# values of a config that change no signal: names, versions, types, and where the model came from
NO_ARCHITECTURE = frozenset({
    "architectures", "attn_implementation", "dtype", "finetuning_task", "fresh_head", "id2label", "initialised_depth",
    "initialised_from", "label2id", "lightning_distilbert", "name_or_path", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version",
    "use_cache",
})  # fmt: skip
Run = Callable[[dict[str, Any], Tensor | None], Signals]


class TeacherCache:
    """A folder with a frozen teacher's signals for each text that it has read.

    A row is found by the hash of its tokens, so that batches may be shuffled, padded and put together in any way. It is
    written when the teacher first reads the text, by whichever process does, and read from then on: in later epochs, by
    other processes, after resuming and in other fits with this teacher. Logits and sentence embeddings are kept in
    float32, hidden states in float16 and only those of layers that some objective compares.

    Args:
        folder: The folder; it need not be there yet.

    Raises:
        DistillationError: On use: if the folder cannot be written to, is another teacher's, lacks a signal or layer,
            or is damaged; if an objective needs what is not kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.read = self.written = 0  # rows, by this object
        self.requires: frozenset[str] = frozenset()  # the signals that it keeps, once it is open
        self._layers: tuple[int, ...] | None = None
        self._store: RowStore | None = None
        self._meta: dict[str, Any] = {}
        self._made_by: dict[str, Any] = {}
        self._teacher = ""

    def open(
        self,
        model: nn.Module,
        pooling: str | None,
        requires: Collection[str],
        layers: Collection[int] | None,
        paths: Paths = "",
        dtype: torch.dtype | None = None,
        settled: bool = False,
    ) -> None:
        """Check that the folder is this teacher's and holds what is needed, or may be made.

        Args:
            model: The teacher, before anything is cast.
            pooling: How its sentence embedding is pooled, if that is needed.
            requires: The signals that are needed.
            layers: The hidden states that are needed; None are all.
            paths: Where it gives its signals.
            dtype: The type that its weights are stored in, if another than their own.
            settled: Whether its weights are the same at every call, as those of a folder are.

        Raises:
            DistillationError: If not.
        """
        if others := sorted(set(requires) - set(DTYPES)):
            raise DistillationError(
                f"Teacher(cache={str(self.folder)!r}) keeps {', '.join(DTYPES)}, and an objective needs "
                f"{', '.join(others)}, which take far more room than the text. Leave the cache out."
            )
        words = getattr(model, "get_output_embeddings", lambda: None)()
        if "logits" in requires and words is not None:
            self._check_classes(len(words.weight))
        check_writable(self.folder / META, "What the teacher says", "cache")
        if not (self._teacher and settled):
            self._teacher = fingerprint(model)
        self.requires = frozenset(requires)
        self._made_by = {
            "format": FORMAT,
            "teacher": self._teacher,
            "pooling": pooling,
            "path": paths if isinstance(paths, str) else dict(paths),
            "dtype": "its own" if dtype is None else str(dtype).removeprefix("torch."),
        }
        self._layers = None if layers is None else tuple(sorted(layers))
        self._store, self._meta = RowStore(self.folder), {}
        self._load_meta()

    def __call__(self, run: Run, inputs: dict[str, Any], positions: Tensor | None = None) -> Signals:
        """Return the teacher's signals for a batch, and run it on the rows that are not there yet.

        Args:
            run: Runs the teacher on inputs, with its head at positions.
            inputs: What the teacher reads, by name.
            positions: Where a token-level head is evaluated, of shape ``(batch, sequence)``; None is everywhere.
        """
        if self._store is None:  # after a launcher has pickled it
            self._store = RowStore(self.folder)
        if not self._meta:
            self._load_meta()  # another process may have begun
        keep = kept_tokens(inputs)
        keys = row_keys(inputs, keep, positions)
        rows: list[memoryview | bytes | None] = list(self._store.get(keys))
        missing = [number for number, row in enumerate(rows) if row is None]
        if missing:
            wanted = torch.tensor(missing, device=device_of(inputs))
            part = {n: v[wanted] if isinstance(v, Tensor) else v for n, v in inputs.items()}
            at = None if positions is None else positions[wanted]
            left = None if keep is None else keep[wanted]
            found = self._encode(run(part, at), left, at, len(missing))
            self._store.put(dict(zip((keys[number] for number in missing), found, strict=True)))
            for number, row in zip(missing, found, strict=True):
                rows[number] = row
        self.read, self.written = self.read + len(keys) - len(missing), self.written + len(missing)
        signals = self._decode([row for row in rows if row is not None], inputs, keep, positions)
        signals.mask, signals.positions = position_mask(inputs), positions
        return signals

    def _encode(self, signals: Signals, keep: Tensor | None, positions: Tensor | None, count: int) -> list[bytes]:
        """Turn the signals of some rows into bytes, row by row."""
        parts, columns = [], []
        for name in sorted(self.requires):
            per, vectors = self._vectors(name, signals, keep, positions)
            vectors = vectors.float().cpu()
            if DTYPES[name] == "float16" and not (vectors.abs() <= torch.finfo(torch.float16).max).all():
                raise DistillationError(
                    f"The teacher's {name} reach {vectors.abs().max():g}, which float16 does not hold: they cannot be "
                    "cached. Leave the cache out."
                )
            parts.append([name, per, list(vectors.shape[1:])])
            chunks = vectors.split(_counts(per, count, keep, positions))
            columns.append([chunk.numpy().astype(DTYPES[name]).tobytes() for chunk in chunks])
        depth = len(signals.hidden_states or ())
        layers = list(range(depth) if self._layers is None else self._layers)
        self._agree({**self._made_by, "parts": parts, "depth": depth, "layers": layers})
        return [b"".join(row) for row in zip(*columns, strict=True)]

    def _vectors(
        self, name: str, signals: Signals, keep: Tensor | None, positions: Tensor | None
    ) -> tuple[str, Tensor]:
        """Return the vectors of a signal, row after row, without those of padding, and what each row has one for."""
        value: Any = getattr(signals, name)
        if value is None:
            raise DistillationError(f"The teacher gave no {name}, which are to be cached.")
        per = "token"
        if name == "logits" and signals.classes is None:
            self._check_classes(value.shape[-1])
        if name == "hidden_states":
            layers = range(len(value)) if self._layers is None else self._layers
            value = torch.stack([value[layer] for layer in layers], dim=2)
        elif name == "logits" and signals.classes is not None:
            per, value = "span", torch.stack(value.chunk(2), dim=2)  # of each token the start and the end
        elif name == "logits" and positions is not None:
            return "position", value
        elif name == "embedding" or value.dim() < 3:
            return "row", value
        if keep is None or keep.shape != value.shape[:2]:
            raise DistillationError(
                f"The teacher's {name} are of shape {tuple(value.shape)}, and its inputs do not tell of which tokens: "
                "a cache needs input_ids or an attention_mask of the same batch and sequence."
            )
        return per, value[keep]

    def _check_classes(self, count: int) -> None:
        if count > MAX_CLASSES:
            raise DistillationError(
                f"The teacher's logits are over {count} classes, and those of at most {MAX_CLASSES} are cached: over a "
                "vocabulary each text would take megabytes. Leave the cache out."
            )

    def _decode(
        self, rows: list[memoryview | bytes], inputs: dict[str, Any], keep: Tensor | None, positions: Tensor | None
    ) -> Signals:
        """Put the signals of a batch together."""
        device = device_of(inputs)
        offsets = [0] * len(rows)
        signals = Signals()
        for name, per, shape in self._meta["parts"]:
            dtype, width, chunks = np.dtype(DTYPES[name]), math.prod(shape), []
            for number, count in enumerate(_counts(per, len(rows), keep, positions)):
                chunks.append(np.frombuffer(rows[number], dtype, count * width, offsets[number]))
                offsets[number] += count * width * dtype.itemsize
            value = torch.from_numpy(np.concatenate(chunks).reshape(-1, *shape)).to(device).float()
            if keep is not None and per in ("token", "span"):
                padded = value.new_zeros(*keep.shape, *shape)
                padded[keep] = value
                value = padded
            if name == "hidden_states":
                found = dict(zip(self._meta["layers"], value.unbind(2), strict=True))
                empty = value.new_zeros(0)  # in the place of layers that nothing compares
                signals.hidden_states = tuple(found.get(layer, empty) for layer in range(self._meta["depth"]))
            elif per == "span":
                start, end = value.unbind(2)
                signals.logits, signals.classes = torch.cat([start, end]), span_classes(start, inputs)
            else:
                setattr(signals, name, value)
        return signals

    def _load_meta(self) -> None:
        """Read what the folder holds, and check that it is this teacher's and enough."""
        path = self.folder / META
        rows = any(self.folder.glob("*.index"))  # before the other: who writes rows has said whose they are
        if not path.is_file():
            if rows:
                raise DistillationError(
                    f"The cache {str(self.folder)!r} holds rows, and no {META} that says which teacher they are of. "
                    "Name another folder, or delete this one."
                )
            return
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            held = {part[0] for part in meta["parts"]}
            layers = set(meta["layers"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DistillationError(
                f"{path} cannot be read ({error}). Delete the folder {str(self.folder)!r}, which is then made again."
            ) from error
        if meta.get("format") != FORMAT:
            raise DistillationError(
                f"The cache {str(self.folder)!r} was written by another version of this package: its format is "
                f"{meta.get('format')!r}, and this version reads {FORMAT}. Name another folder, or delete this one."
            )
        for key, own in self._made_by.items():
            if own is not None and meta.get(key) != own:
                raise DistillationError(
                    f"The cache {str(self.folder)!r} was made by another teacher: its {key} is {meta.get(key)!r}, and "
                    f"that of this one {own!r}. Name another folder, or delete this one."
                )
        lacking = sorted(self.requires - held)
        if "hidden_states" in self.requires and not lacking:
            wanted = range(meta["depth"]) if self._layers is None else self._layers
            lacking = [f"hidden state {layer}" for layer in wanted if layer not in layers]
        if lacking:
            raise DistillationError(
                f"The cache {str(self.folder)!r} lacks {', '.join(lacking)}, which the objectives of this fit compare. "
                "Name another folder, or delete this one."
            )
        self._meta, self.requires, self._layers = meta, frozenset(held), tuple(meta["layers"])
        self._made_by = {key: meta.get(key) for key in self._made_by}

    def _agree(self, meta: dict[str, Any]) -> None:
        """Say what the folder holds if nothing does yet, and check that these rows are like the others."""
        if not self._meta:
            partial = self.folder / f".{uuid.uuid4().hex}"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
                with contextlib.suppress(FileExistsError):  # another process was first
                    os.link(partial, self.folder / META)
            except OSError as error:
                raise DistillationError(
                    f"The cache {str(self.folder)!r} cannot be written: {error.strerror or error}."
                ) from error
            finally:
                partial.unlink(missing_ok=True)
            self._load_meta()
        if self._meta != meta:
            raise DistillationError(
                f"The teacher gave {meta['parts']} for this batch, and the cache {str(self.folder)!r} holds "
                f"{self._meta['parts']}: name another folder, or leave the cache out."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out: each process opens its own."""
        return {**self.__dict__, "_store": None}


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's class, of what its configs say of the architecture, and of its weights.

    Example:
        >>> fingerprint(nn.Linear(2, 2)) == fingerprint(nn.Linear(2, 2))
        False
    """
    found = hashlib.blake2b(type(model).__name__.encode(), digest_size=KEY_BYTES)
    held: list[Any] = [getattr(part, "config", None) for part in model.modules()]  # a foreign model may hold several
    configs = {id(config): config.to_dict() for config in held if callable(getattr(config, "to_dict", None))}
    found.update(json.dumps([_architecture(values) for values in configs.values()], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


def _architecture(value: Any) -> Any:
    """Return the values of a config that may change what a model computes, as plain ones."""
    if isinstance(value, Mapping):
        named = {str(name): item for name, item in value.items()}
        return {n: _architecture(v) for n, v in named.items() if not n.startswith("_") and n not in NO_ARCHITECTURE}
    if isinstance(value, (list, tuple)):
        return [_architecture(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def device_of(inputs: Mapping[str, Any]) -> torch.device:
    """Return where the inputs are."""
    return next(value.device for value in inputs.values() if isinstance(value, Tensor))


def kept_tokens(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return which tokens are no padding, boolean of shape ``(batch, sequence)``; None where there are no tokens."""
    mask, ids = position_mask(inputs), inputs.get("input_ids")
    if mask is None and isinstance(ids, Tensor) and ids.dim() == 2:
        return torch.ones_like(ids, dtype=torch.bool)
    return mask


def row_keys(inputs: Mapping[str, Any], keep: Tensor | None, positions: Tensor | None) -> list[bytes]:
    """Return the hash of each row of what the teacher reads, without its padding.

    Args:
        inputs: Tensors with the rows first, and plain values, by name.
        keep: Which tokens are no padding.
        positions: Where the head is evaluated.

    Raises:
        DistillationError: If something is neither.

    Example:
        >>> short = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])}
        >>> padded = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> row_keys(short, kept_tokens(short), None) == row_keys(padded, kept_tokens(padded), None)
        True
    """
    named = dict(inputs) if positions is None else {**inputs, "positions of the logits": positions}
    tensors = {name: value.cpu() for name, value in sorted(named.items()) if isinstance(value, Tensor)}
    plain = {name: value for name, value in sorted(named.items()) if name not in tensors}
    rows = {len(value) if value.dim() else 0 for value in tensors.values()}
    unknown = [name for name, value in plain.items() if not isinstance(value, (str, int, float, bool, type(None)))]
    if len(rows) != 1 or rows == {0} or unknown or "decoder_input_ids" in inputs:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        raise DistillationError(
            f"A cache keeps what a teacher says of each text, and this one is called with tensors of the shapes "
            f"{shapes} and with {list(plain)}: it needs tensors with the texts first, and plain values. Leave the "
            "cache out."
        )
    keep = None if keep is None else keep.cpu()
    found = [hashlib.blake2b(repr(plain).encode(), digest_size=KEY_BYTES) for _ in range(rows.pop())]
    for name, value in tensors.items():
        value = value if value.is_floating_point() else value.long()
        for number, (row, digest) in enumerate(zip(value, found, strict=True)):
            if keep is not None and value.shape[:2] == keep.shape:
                places = keep[number]
                row = row[places]
                # where texts do not begin at the first position, the place of each token counts
                digest.update(b"" if places[: len(row)].all() else places.numpy().tobytes())
            digest.update(f"{name} {tuple(row.shape)}".encode())
            digest.update((row.float() if row.is_floating_point() else row).numpy().tobytes())
    return [digest.digest() for digest in found]


def _counts(per: str, rows: int, keep: Tensor | None, positions: Tensor | None) -> list[int]:
    """Return how many vectors each row has."""
    places = {"token": keep, "span": keep, "position": positions}.get(per)
    return [1] * rows if places is None else places.sum(dim=1).tolist()
