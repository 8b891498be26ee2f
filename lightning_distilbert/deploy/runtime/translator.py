"""The two graphs of a student that translates, run together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_distilbert.deploy.runtime.search import Found, Search, search
from lightning_distilbert.deploy.runtime.session import Row, Session
from lightning_distilbert.errors import DistillationError

MASK = "encoder_attention_mask"


class Translator:
    """An encoder and a decoder in onnxruntime.

    Args:
        encoder: The file of the encoder, which gives what the decoder looks up in a text.
        decoder: The file of the decoder, which gives logits and what it remembers for the next token.
        threads: Threads of one call; None is as many as this process may use.

    Attributes:
        inputs: The names of what `run` takes.

    Raises:
        DistillationError: If one cannot be run, or the two do not belong together.
    """

    def __init__(self, encoder: Path, decoder: Path, threads: int | None = None) -> None:
        self.encoder = Session(encoder, threads)
        looked_up = [name for name in self.encoder.outputs if name.startswith("cross_")]
        past = [name.replace("cross_", "past_") for name in looked_up]
        self.decoder = Session(decoder, threads, known=("input_ids", MASK, *looked_up, *past))
        present = [name.replace("past_", "present_") for name in past]
        if {*looked_up, *past} - {*self.decoder.inputs} or self.decoder.outputs != ["logits", *present]:
            raise DistillationError(
                f"{encoder.name} and {decoder.name} in {str(decoder.parent)!r} do not belong together: one gives "
                f"{', '.join(self.encoder.outputs)}, and the other takes {', '.join(self.decoder.inputs)}. Export the "
                "student again."
            )
        self.inputs = [*self.encoder.inputs, "decoder_input_ids"]
        self.outputs = ["logits"]

    def begin(self, batch: Row) -> Decoding:
        """Read a batch of texts.

        Args:
            batch: ``input_ids`` and ``attention_mask``, of shape ``(batch, sequence)``.
        """
        return Decoding(self.decoder, self.encoder.run(batch) | {MASK: batch["attention_mask"]})

    def run(self, batch: Row) -> Row:
        """Return the logits of translations that are known, as in training.

        They are read in two parts, so that what is verified here is also what is remembered.

        Args:
            batch: ``input_ids`` and ``attention_mask`` of the texts, and ``decoder_input_ids``.
        """
        decoding, tokens = self.begin(batch), batch["decoder_input_ids"]
        half = tokens.shape[1] // 2
        parts = [decoding.read(part) for part in (tokens[:, :half], tokens[:, half:]) if part.shape[1]]
        return {"logits": np.concatenate(parts, axis=1)}

    def generate(self, batch: Row, rules: Search) -> Found:
        """Translate a batch.

        Args:
            batch: ``input_ids`` and ``attention_mask``.
            rules: The rules of the search.
        """
        return search(self.begin(batch), len(batch["input_ids"]), rules)


class Decoding:
    """A decoder in the midst of some translations, which remembers what it has read.

    Args:
        session: The decoder.
        texts: What the encoder found in the texts, by the names of the decoder's inputs.
    """

    def __init__(self, session: Session, texts: Row) -> None:
        self._session = session
        self._texts = {name: texts[name] for name in session.inputs if name in texts}
        rows = len(texts[MASK])
        self._text = np.arange(rows)  # which text each row is of
        self._past = {
            name: np.zeros((rows, shape[1], 0, shape[3]), np.float32)
            for name, shape in session.shapes.items()
            if name.startswith("past_")
        }

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read more tokens of each row; return the logits of each one's next, of shape ``(rows, tokens, vocabulary)``.

        Args:
            tokens: int64 of shape ``(rows, tokens)``.
        """
        found = self._session.run({"input_ids": tokens} | self._texts | self._past)
        self._past = {name: found[name.replace("past_", "present_")] for name in self._past}
        return found["logits"]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one more token of each row; see `Steps`."""
        return self.read(tokens[:, None])[:, -1]

    def take(self, rows: np.ndarray) -> None:
        """Go on with some rows; see `Steps`."""
        self._past = {name: value[rows] for name, value in self._past.items()}
        text = self._text[rows]
        if not np.array_equal(text, self._text):  # else beams have changed places within their text
            self._texts = {name: value[rows] for name, value in self._texts.items()}
            self._text = text
