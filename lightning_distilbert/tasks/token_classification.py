"""Token classification: the entities in a sentence, or the slots of a request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lightning_distilbert.answers import TaggedWord, sentences_of, word_entities
from lightning_distilbert.architectures import logits_at
from lightning_distilbert.data.alignment import WordBatches, encode_words
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.labels import IGNORED
from lightning_distilbert.data.tags import OUTSIDE, scheme_of
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional import mean_or_zero
from lightning_distilbert.metrics_entities import NAMES, EntityScores
from lightning_distilbert.prediction import evaluating, room
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model, check_number_of_labels


class TokenClassification(Task):
    r"""Find the entities in a sentence by giving each word a tag.

    A word is represented by its first sub-word. There the head is evaluated, for student and teacher alike, and nowhere
    else; so these are the places of the soft targets too. The loss is the cross-entropy over the words :math:`W` of a
    batch that have a label:

    .. math:: -\frac{1}{|W|} \sum_{i \in W} \log p(y_i)

    Args:
        num_labels: The number of labels, whose names then come from the student's or teacher's config or from the data.
        labels: The names of the labels, in the order of the head's outputs: ``O``, and tags such as ``B-PER`` and
            ``I-PER`` of any scheme (IOB1, IOB2, IOBES, BILOU, IO). A teacher may have them in another order. With
            neither of the two, they are those that the teacher's or the student's config names.
        monitor: The metric that tells which checkpoint is best: ``f1``, ``precision`` or ``recall`` of whole entities,
            ``accuracy`` of single words, or ``exact``, the share of sentences without any mistake.

    Raises:
        DistillationError: If the options contradict each other, or a name is no tag.

    Example:
        >>> task = TokenClassification(labels=["O", "B-PER", "I-PER"])
        >>> task.num_labels, task.monitor
        (3, 'val/f1')
        >>> task.decode({"logits": torch.tensor([[0.0, 2.0, 0.0]])})
        [{'label': 'B-PER', 'score': 0.78698...}]
    """

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    default_objectives: ClassVar[str] = "layerwise"
    data: ClassVar[tuple[str, ...]] = ("TokenClassificationData",)
    mode: str = "max"

    def __init__(
        self, num_labels: int | None = None, labels: Sequence[str] | None = None, monitor: str | None = None
    ) -> None:
        if labels:
            scheme_of(labels)
            if len(set(labels)) < len(labels):
                raise DistillationError(f"labels={list(labels)} names a label twice.")
            check_number_of_labels(num_labels, labels)
        if num_labels is not None and num_labels < 2:
            raise DistillationError(f"One label out of num_labels={num_labels} is no choice; give at least 2.")
        if monitor is not None:
            check_choice("TokenClassification(monitor=...)", monitor, NAMES)
        self.num_labels = len(labels) if labels else num_labels
        self.labels = tuple(labels) if labels else None
        self.monitor = f"val/{monitor or 'f1'}"

    def with_labels(self, labels: Sequence[str] | None) -> TokenClassification:
        """Return this task, with labels that a model's config names if it was given none.

        Args:
            labels: The names in that config, or None.

        Raises:
            DistillationError: If it names none either.
        """
        if self.num_labels is not None:
            return self
        if not labels:
            raise DistillationError(
                "TokenClassification was given neither labels nor num_labels, and no teacher's or student's config "
                "names the labels. Name them: labels=['O', 'B-PER', 'I-PER', ...]."
            )
        return TokenClassification(labels=list(labels), monitor=self.monitor.removeprefix("val/"))

    def model_config(self) -> dict[str, Any]:
        """Return the config values that give the student this head."""
        config: dict[str, Any] = {"num_labels": self.num_labels}
        if self.labels:
            config["id2label"] = dict(enumerate(self.labels))
            config["label2id"] = {label: index for index, label in enumerate(self.labels)}
        return config

    def positions(self, batch: Batch) -> Tensor | None:
        """Return where words begin: ``first_subword``, else where ``labels`` are, else all real tokens.

        Args:
            batch: Tensors of shape ``(batch, sequence)``.
        """
        if "first_subword" in batch:
            return batch["first_subword"]
        if "labels" in batch:
            return batch["labels"] != IGNORED
        mask = batch.get("attention_mask")
        return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return the ``logits`` of the words, of shape ``(words, num_labels)``, row by row."""
        positions = self.positions(batch)
        with logits_at(model, positions):
            logits: Tensor = call_model(model, batch).logits
        if logits.dim() == 3:  # a model of another kind, which was not narrowed
            logits = logits[positions]
        return {"logits": logits}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the mean cross-entropy over the words with a label; None if the batch carries no labels at all."""
        if "labels" not in batch:
            return None
        logits, labels = outputs["logits"].float(), batch["labels"][self.positions(batch)]
        known = labels != IGNORED
        return mean_or_zero(F.cross_entropy(logits[known], labels[known], reduction="none"), logits)

    def new_metrics(self) -> EntityScores:
        """Return the metrics of one split."""
        return EntityScores(self.labels)

    def name_labels(self, metrics: Any, labels: Sequence[str] | None) -> None:
        """Tell metrics the names of the labels, which this task may not know."""
        metrics.labels = list(self.labels or labels or ()) or None

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the words in that have a label; one that no token stands for counts as found outside of entities."""
        if "labels" not in batch:
            return
        positions = self.positions(batch)
        assert positions is not None
        row = positions.nonzero()[:, 0]
        predicted, labels = outputs["logits"].argmax(dim=-1), batch["labels"][positions]
        if "sentence" not in batch:  # each row is a sentence, whole
            metrics.update(predicted, labels, row)
            return
        metrics.update(predicted, labels, batch["sentence"][row], batch["word"][positions])
        unseen = batch.get("unseen")
        if unseen is not None and len(unseen):
            outside = torch.full_like(unseen[:, 2], metrics.labels.index(OUTSIDE))
            metrics.update(outside, unseen[:, 2], unseen[:, 0], unseen[:, 1])

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return the likeliest label of each word and its probability.

        Args:
            outputs: What `run` returned.
            labels: The names of the labels, for a task that names none.
        """
        names = self._names(labels)
        return [{"label": names[word.label], "score": word.score} for word in self._tagged(outputs)]

    def predict(self, module: Any, batch: Batch) -> list[Any]:
        """Return the entities of each sentence in a batch.

        Args:
            module: The `DistillationModule` of this task.
            batch: As `WordBatches` makes it of whole sentences; with ``words``, the words of each.

        Returns:
            For each sentence a list of dicts of ``label``, ``text``, ``start``, ``end`` (the word after the last) and
            ``score``.
        """
        sentences = list(dict.fromkeys(batch["sentence"].tolist()))
        words: dict[int, dict[int, TaggedWord]] = {sentence: {} for sentence in sentences}
        for sentence, word, tagged in self._words(module, batch):
            words[sentence][word] = tagged
        names = self._names(module.labels)
        return [
            word_entities(names, words[sentence], text)
            for sentence, text in zip(sentences, batch["words"], strict=True)
        ]

    def answer(
        self, module: Any, texts: Sequence[Any], batch_size: int = 32, max_length: int | None = None
    ) -> list[Any]:
        """Find the entities in texts, or in sentences that are lists of words.

        A text is split into words by `lightning_distilbert.data.split_words`. What is longer than the student reads is
        taken in windows that overlap. Tags are read as they are scored: an ``I-PER`` that nothing begins begins an
        entity, and a tag of another type ends one.

        Args:
            module: The `DistillationModule` of this task.
            texts: Texts, or lists of words.
            batch_size: Windows in a batch; those of similar length go together.
            max_length: Tokens of a window at most; None is what tokenizer and student allow.

        Returns:
            For each text a list of dicts of ``label``, ``text``, ``start``, ``end`` and ``score``, the mean of its
            words' probabilities. In a text, ``text[start:end]`` is the entity; in a list of words, ``words[start:end]``
            are its words.

        Raises:
            DistillationError: If something in it is neither a text nor a list of words.
        """
        names = self._names(module.labels)
        sentences = sentences_of(texts)
        rows = encode_words(module.tokenizer, [item.words for item in sentences], room(module, max_length))
        order = sorted(range(len(rows)), key=rows.lengths.__getitem__, reverse=True)
        collate = WordBatches(Padding.of(module.tokenizer))
        words: list[dict[int, TaggedWord]] = [{} for _ in sentences]
        with evaluating(module), tqdm(total=len(order), desc="tag", unit=" rows", delay=1, leave=False) as bar:
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                batch = {name: value.to(module.device) for name, value in collate(rows[part]).items()}
                for sentence, word, tagged in self._words(module, batch):
                    words[sentence][word] = tagged
                bar.update(len(part))
        return [item.entities(names, tags) for item, tags in zip(sentences, words, strict=True)]

    def _names(self, labels: Sequence[str] | None) -> Sequence[str]:
        names = self.labels or labels
        if not names:
            raise DistillationError(
                "The labels have no names, so that nobody knows which words make an entity. Name them: "
                "TokenClassification(labels=['O', 'B-PER', 'I-PER', ...])."
            )
        return names

    @staticmethod
    def _tagged(outputs: Outputs) -> list[TaggedWord]:
        scores, labels = outputs["logits"].detach().float().softmax(dim=-1).max(dim=-1)
        return [TaggedWord(*found) for found in zip(labels.tolist(), scores.tolist(), strict=True)]

    def _words(self, module: Any, batch: Batch) -> Iterator[tuple[int, int, TaggedWord]]:
        """Run the student and yield the sentence and the place of each word, with what it is taken for."""
        tagged = self._tagged(module(batch))
        positions = batch["first_subword"]
        sentence = batch["sentence"][positions.nonzero()[:, 0]].tolist()
        yield from zip(sentence, batch["word"][positions].tolist(), tagged, strict=True)
