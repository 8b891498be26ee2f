"""Translation: an encoder that reads one language, and a decoder that writes another."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EncoderDecoderModel

from lightning_distilbert.architectures import logits_at
from lightning_distilbert.data.inputs import split_pairs
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import _write_tokenizer, tokenizer_files, tokenizer_from_files
from lightning_distilbert.functional import mean_or_zero
from lightning_distilbert.metrics_translation import TranslationScores
from lightning_distilbert.target_tokenizer import (
    FOLDER,
    check_same_target,
    load_target_tokenizer,
    set_target_tokenizer,
    shift_right,
    start_token,
    target_positions,
    target_tokenizer,
)
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model, watched

IGNORED = -100
KEPT = "target_tokenizer"


class Translation(Task):
    r"""Translate a text.

    The loss is the cross-entropy of the tokens of the translation, each given the text and the tokens before it,
    averaged over all tokens :math:`T` of a batch, ends included and padding not:

    .. math:: -\frac{1}{|T|} \sum_{t \in T} \log p(y_t \mid y_{<t}, x)

    At the same places, and no others, soft targets compare student and teacher.

    In validation each text is translated without a search, which is quick; the scores are BLEU and chrF of the corpus
    (sacrebleu). `predict` searches.

    Args:
        num_beams: Translations that a search holds at a time; 1 takes the likeliest token each time.
        length_penalty: The exponent of a translation's length in its score: above 0 favours longer ones.
        max_length: Tokens of a translation at most; None is what the decoder has positions for.
        label_smoothing: The share of the target probability that goes to all tokens alike, in training.
        evaluation_beams: As `num_beams`, in validation and test.
        evaluation_length: As `max_length`, in validation and test: an untrained model finds no end.
        encoder_rate: What the learning rate is multiplied by for the encoder of a `TranslationStudent`. The rate that
            a new decoder needs takes from a pretrained encoder what it knows; give 1 to one of random weights.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> task = Translation(num_beams=4)
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
        >>> task.loss({"logits": logits}, {"labels": torch.tensor([[2, -100]])})
        tensor(1.3863)
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    default_objectives: ClassVar[str] = "logits"
    data: ClassVar[tuple[str, ...]] = ("TranslationData",)
    monitor: str = "val/bleu"
    mode: str = "max"

    def __init__(
        self,
        num_beams: int = 4,
        length_penalty: float = 1.0,
        max_length: int | None = None,
        label_smoothing: float = 0.0,
        evaluation_beams: int = 1,
        evaluation_length: int = 64,
        encoder_rate: float = 0.2,
    ) -> None:
        sizes = {
            "num_beams": num_beams,
            "max_length": max_length,
            "evaluation_beams": evaluation_beams,
            "evaluation_length": evaluation_length,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise DistillationError(f"Translation({name}={size}): it has to be 1 or more.")
        if not 0.0 <= label_smoothing < 1.0:
            raise DistillationError(f"label_smoothing={label_smoothing} is a share: 0 <= label_smoothing < 1.")
        if not (isinstance(encoder_rate, (int, float)) and 0 < encoder_rate < math.inf):
            raise DistillationError(f"encoder_rate={encoder_rate!r} is a factor: give a number above 0.")
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.max_length = max_length
        self.label_smoothing = label_smoothing
        self.evaluation_beams = evaluation_beams
        self.evaluation_length = evaluation_length
        self.encoder_rate = encoder_rate

    def prepare_model(self, model: nn.Module) -> None:
        """Freeze an unused pooler, and let ``model.generate`` search as this task does, in the saved folder too."""
        if not isinstance(model, EncoderDecoderModel):
            return
        if isinstance(pooler := getattr(model.encoder, "pooler", None), nn.Module):
            pooler.requires_grad_(False)  # DDP refuses parameters that never get a gradient
        model.generation_config = self.search_settings(model)

    def rates(self, module: Any) -> dict[str, float]:
        """Return the factor of the encoder's learning rate.

        Args:
            module: The `DistillationModule` of this task.
        """
        return {"student.encoder": self.encoder_rate} if isinstance(module.student, EncoderDecoderModel) else {}

    def search_settings(self, model: Any, beams: int | None = None, most: int | None = None) -> Any:
        """Return how to search: the model's own rules, such as tokens that it may not write, with these options.

        Args:
            model: The student.
            beams: In place of `num_beams`.
            most: In place of `max_length`.

        Returns:
            A ``GenerationConfig``.
        """
        config = copy.deepcopy(model.generation_config)
        longest = target_positions(model.config)
        beams, most = beams or self.num_beams, most or self.max_length
        config.update(
            decoder_start_token_id=start_token(model.config),
            pad_token_id=model.config.pad_token_id,
            eos_token_id=model.config.eos_token_id,
            num_beams=beams,
            max_length=min(most or longest, longest) + 1,  # with the start
            max_new_tokens=None,  # transformers warns of both
            do_sample=False,
            early_stopping=beams > 1,
            length_penalty=self.length_penalty if beams > 1 else 1.0,
        )
        return config

    def generate(self, model: Any, batch: Batch, beams: int | None = None, most: int | None = None) -> Tensor:
        """Translate a batch.

        Args:
            model: The student.
            batch: ``input_ids`` and ``attention_mask``; nothing else is looked at, as ``generate`` refuses token types.
            beams: In place of `num_beams`.
            most: In place of `max_length`.

        Returns:
            The tokens of the translations without their start, of shape ``(batch, tokens)``.
        """
        config = self.search_settings(model, beams, most)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        found: Tensor = model.generate(**inputs, generation_config=config)
        return found[:, 1:]

    def positions(self, batch: Batch) -> Tensor | None:
        """Return where there are tokens of a translation, its end included; None without labels.

        Args:
            batch: ``labels``, -100 after the end, of shape ``(batch, tokens)``.
        """
        labels = batch.get("labels")
        return None if labels is None else labels != IGNORED

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return the ``logits`` at the tokens of the translations, of shape ``(tokens, vocabulary)``, row by row.

        In an evaluation there are also the ``translations``, of shape ``(batch, tokens)``. Without labels these alone.
        """
        labels = batch.get("labels")
        if labels is None:
            return {"translations": self.generate(model, batch)}
        if "decoder_input_ids" not in batch:  # of data that leave it to the model
            config: Any = model.config
            batch = {**batch, "decoder_input_ids": shift_right(labels, start_token(config), config.pad_token_id)}
        positions = self.positions(batch)
        with logits_at(model, positions):
            logits: Tensor = call_model(model, batch).logits
        outputs = {"logits": logits[positions] if logits.dim() == 3 else logits}
        # taps would take the steps of a search for forwards of the student
        if not model.training and "reference" in batch and not watched(model):
            outputs["translations"] = self.generate(model, batch, self.evaluation_beams, self.evaluation_length)
        return outputs

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the mean cross-entropy over the tokens of the translations; None if the batch has no labels.

        Labels are smoothed in training only, so that validation losses compare.
        """
        labels = batch.get("labels")
        if labels is None:
            return None
        logits = outputs["logits"]
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        costs = F.cross_entropy(logits.float(), labels[labels != IGNORED], reduction="none", label_smoothing=smoothing)
        return mean_or_zero(costs, logits)

    def new_metrics(self) -> TranslationScores:
        """Return the metrics of one split."""
        return TranslationScores()

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the translations in of a batch that brings the ``reference`` texts."""
        if "translations" in outputs and "reference" in batch:
            metrics.update(self._texts(metrics.tokenizer, outputs["translations"]), batch["reference"])

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return the tokens of the translations; `predict` returns their texts, for which it takes a tokenizer."""
        tokens: list[Any] = outputs["translations"].tolist()
        return tokens

    def predict(self, module: Any, batch: Batch) -> list[Any]:
        """Translate a batch of texts.

        Args:
            module: The `DistillationModule` of this task.
            batch: ``input_ids`` and ``attention_mask``.

        Returns:
            The translations, as strings.

        Raises:
            DistillationError: If the module has no target tokenizer.
        """
        return self._texts(target_tokenizer(module), self.generate(module.student, batch))

    def answer(
        self, module: Any, texts: Sequence[Any], batch_size: int = 32, max_length: int | None = None
    ) -> list[Any]:
        """Translate texts; see `Task.answer`. The translation of nothing is nothing.

        Raises:
            DistillationError: If something in it is no single text, or the module has no target tokenizer.
        """
        texts, seconds = split_pairs(texts)
        if seconds is not None:
            pair = texts[0], seconds[0]
            raise DistillationError(f"Entry 0 is a pair of texts, {pair!r}: a translation is made of a single one.")
        _known(target_tokenizer(module))  # before the first text is translated
        written = [text for text in texts if text.strip()]
        found = iter(super().answer(module, written, batch_size, max_length))
        return [next(found) if text.strip() else "" for text in texts]

    @staticmethod
    def _texts(tokenizer: Any, translations: Tensor) -> list[str]:
        texts: list[str] = _known(tokenizer).batch_decode(translations, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def setup(self, module: Any, stage: str) -> None:
        """Give the metrics the target tokenizer, say how they count, and refuse a teacher that writes other tokens."""
        tokenizer = target_tokenizer(module)
        scores = [metrics for metrics in module.metrics.values() if isinstance(metrics, TranslationScores)]
        for metrics in scores:
            metrics.tokenizer = tokenizer
        if scores and stage != "predict":  # without sacrebleu this fails here, and not after an epoch
            signatures = ", ".join(f"{name} {signature}" for name, signature in scores[0].signatures.items())
            rank_zero_info(f"Translations are scored by sacrebleu: {signatures}")
        if stage == "fit":
            check_same_target(module)

    def state(self, module: Any) -> dict[str, Any]:
        """Return the files of the target tokenizer, or where it lies if these are not of text."""
        tokenizer = target_tokenizer(module)
        if tokenizer is None:
            return {}
        try:
            return {KEPT: tokenizer_files(tokenizer)}
        except DistillationError:  # Marian's has binary ones
            return {KEPT: str(tokenizer.name_or_path)}

    def load_state(self, module: Any, kept: Mapping[str, Any]) -> None:
        """Take the target tokenizer from a checkpoint.

        Raises:
            DistillationError: If the data has trained another one by now.
        """
        files = kept.get(KEPT)
        if not files:
            return
        theirs = load_target_tokenizer(files) if isinstance(files, str) else tokenizer_from_files(dict(files))
        ours = vars(module).get("_target_tokenizer")
        if ours is not None and ours.get_vocab() != theirs.get_vocab():
            raise DistillationError(
                "The checkpoint has another target tokenizer than the data, which were read already. Resume with the "
                "training texts of that run, or give both the same one: TranslationStudent(target_tokenizer=...)."
            )
        set_target_tokenizer(module, theirs)

    def write_files(self, module: Any, folder: Path) -> None:
        """Write the target tokenizer into a sub-folder ``target_tokenizer``."""
        tokenizer = _known(target_tokenizer(module))
        (folder / FOLDER).mkdir()
        _write_tokenizer(tokenizer, folder / FOLDER)

    def read_files(self, module: Any, folder: Path) -> None:
        """Take the target tokenizer from a saved student's folder; Marian's serves both languages."""
        set_target_tokenizer(module, load_target_tokenizer(folder))


def _known(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise DistillationError(
            "The module has no target tokenizer yet, so that nobody knows what its tokens mean. Train it on a "
            "TranslationData, load a saved student, or give it one: TranslationStudent(target_tokenizer=...)."
        )
    return tokenizer
