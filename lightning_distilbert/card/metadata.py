"""The part of a model card that the hub reads: its YAML, by `huggingface_hub`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError

from lightning_distilbert.card.facts import SPLITS, Facts, mapping
from lightning_distilbert.errors import DistillationError, nearest

# documented, and missing in the module's list of what it exports
validate_repo_id: Any = importlib.import_module("huggingface_hub.utils").validate_repo_id
# the hub's identifiers (huggingface.co/docs/hub/repositories-licenses, 2026); huggingface_hub has no list of them
LICENCES = tuple(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense
    zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
    """.split()
)
# the hub's name of what a task does, by the auto class of its head
PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSeq2SeqLM": "translation",
    "AutoModel": "sentence-similarity",
}
# the hub's identifier of a metric, and how it is written in a table
METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "balanced": ("balanced_accuracy", "mean of accuracy in scope and recall out of scope"),
    "bleu": ("bleu", "BLEU (sacrebleu)"),
    "chrf": ("chrf", "chrF (sacrebleu)"),
    "ece": ("ece", "calibration error"),
    "em": ("exact_match", "exact match"),
    "exact": ("exact_match", "sentences with all entities right"),
    "f1": ("f1", "F1"),
    "in_scope_accuracy": ("accuracy", "accuracy in scope"),
    "loss": ("loss", "loss"),
    "map": ("average_precision", "mean average precision"),
    "mcc": ("matthews_correlation", "Matthews correlation"),
    "oos_auroc": ("roc_auc", "AUROC of out of scope"),
    "oos_recall": ("recall", "recall of out of scope"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "perplexity": ("perplexity", "perplexity"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
    "spearman": ("spearmanr", "Spearman correlation"),
}
GROUPS = {
    "best_": "at the chosen threshold",
    "has_answer_": "of questions that have an answer",
    "no_answer_": "of questions that have none",
}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")


def card_data(facts: Facts, name: str, given: Mapping[str, Any]) -> ModelCardData:
    """Return the metadata of a student's card.

    Args:
        facts: What its folder says.
        name: What it is called.
        given: What the user said: ``licence``, ``licence_link``, ``language``, ``datasets``, ``base_model``.

    Raises:
        DistillationError: If something that was given is not what the hub knows under that key.
    """
    licence = licence_fields(given.get("licence"), given.get("licence_link"))
    datasets = hub_names("datasets", given.get("datasets")) or _recorded(facts.data.get("source"))
    base = hub_names("base_model", given.get("base_model")) or _base_models(facts)
    results = _results(facts, datasets)
    library = _library(facts)
    return ModelCardData(
        language=_one(known_languages(facts, given)),
        **licence,
        library_name=library,
        pipeline_tag=pipeline_tag(facts),
        base_model=_one(base),
        datasets=datasets or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=_tags(facts, library),
        model_name=name if results else None,
        eval_results=results or None,
    )


def pipeline_tag(facts: Facts) -> str:
    """Return the hub's name of what a student does."""
    if facts.headless:
        return "feature-extraction"
    return "text-ranking" if facts.task_name == "Reranking" else PIPELINES[facts.task.auto_class]


def licence_fields(licence: str | None, link: str | None = None) -> dict[str, Any]:
    """Return the metadata of a licence.

    Args:
        licence: The hub's identifier, or with a `link` the name of another licence.
        link: Where the text of another licence is: an address, or a file in the folder.

    Raises:
        DistillationError: If the hub does not know the licence and there is no link, or a link of one that it knows.

    Example:
        >>> licence_fields("Apache-2.0")
        {'license': 'apache-2.0'}
        >>> licence_fields("house-rules", "LICENSE")
        {'license': 'other', 'license_name': 'house-rules', 'license_link': 'LICENSE'}
        >>> licence_fields("apache2.0")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: The hub knows no licence 'apache2.0'. Did you mean ...
    """
    if licence is None:
        if link is not None:
            raise DistillationError(f"licence_link={link!r} is that of no licence. Name it: licence=..., or --licence.")
        return {}
    name = str(licence).strip().lower()
    if link is None and name in LICENCES:
        return {"license": name}
    if name in LICENCES and name != "other":
        raise DistillationError(f"{name!r} is a licence that the hub knows, and needs no licence_link. Leave it out.")
    if link is None or not name:
        raise DistillationError(
            f"The hub knows no licence {licence!r}.{nearest(name, LICENCES)} Give an identifier of "
            "huggingface.co/docs/hub/repositories-licenses, such as 'mit'; or of any other licence its name and where "
            "its text is: licence_link=..., or --licence_link URL."
        )
    return {"license": "other", "license_name": re.sub(r"[^\w.+-]+", "-", name), "license_link": link}


def hub_names(where: str, names: str | Sequence[str] | None) -> list[str]:
    """Return names on the hub as a list, without the config that follows a colon.

    Args:
        where: The option that they were given as.
        names: One or several.

    Raises:
        DistillationError: If something in it cannot be one.

    Example:
        >>> hub_names("datasets", "nyu-mll/glue:sst2")
        ['nyu-mll/glue']
        >>> hub_names("base_model", "/home/jane/teacher")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: base_model='/home/jane/teacher' is no name on the hub, ...
    """
    found = []
    for name in [names] if isinstance(names, str) else list(names or []):
        short = str(name).partition(":")[0]
        try:
            validate_repo_id(short)
        except HFValidationError as error:
            raise DistillationError(
                f"{where}={name!r} is no name on the hub, such as 'owner/name'. Leave out what is not there: the card "
                "has words for it."
            ) from error
        found.append(short)
    return found


def languages(given: str | Sequence[str] | None) -> list[str]:
    """Return codes of languages as a list.

    Args:
        given: One or several.

    Raises:
        DistillationError: If something in it is no code.

    Example:
        >>> languages("en")
        ['en']
    """
    found = [given] if isinstance(given, str) else list(given or [])
    for code in found:
        if not LANGUAGE.fullmatch(str(code)):
            raise DistillationError(
                f"language={code!r} is no code of a language: write that of ISO 639, such as 'en' or 'de'."
            )
    return found


def metric_words(metric: str) -> tuple[str, str]:
    """Return the hub's identifier of a metric, and how it is written in a table.

    Args:
        metric: Its name here.

    Example:
        >>> metric_words("best_f1"), metric_words("ndcg@10")
        (('f1', 'F1 at the chosen threshold'), ('ndcg@10', 'ndcg@10'))
    """
    for prefix, words in GROUPS.items():
        base = metric.removeprefix(prefix)
        if base != metric and base in METRICS:
            kind, name = METRICS[base]
            return kind, f"{name} {words}"
    return METRICS.get(metric, (metric, metric))


def known_languages(facts: Facts, given: Mapping[str, Any]) -> list[str]:
    """Return the languages that were given, or else those that the data named."""
    told = facts.data.get("languages")
    noted = [code for code in told if isinstance(code, str)] if isinstance(told, list) else []
    return languages(given.get("language")) or [code for code in noted if LANGUAGE.fullmatch(code)]


def split_of(split: str) -> str:
    """Return the usual name of a split."""
    return SPLITS.get(split, split)


def data_name(facts: Facts) -> str:
    """Return a few words for the data that a student was trained and measured on."""
    if facts.evaluation:
        return str(facts.evaluation.get("source"))
    source = facts.data.get("source")
    found = source if isinstance(source, list) else [source]
    if isinstance(source, Mapping) and not {"hub", "path", "object"} & set(source):
        found = [source.get("validation") or source.get("test") or next(iter(source.values()), None)]
    words = [str(mapping(one).get("hub") or mapping(one).get("path") or "") for one in found]
    return ", ".join(word for word in words if word) or "unnamed data"


def _one(values: list[str]) -> Any:
    """Return the only value as itself, as cards have it."""
    return values[0] if len(values) == 1 else values or None


def _recorded(source: Any) -> list[str]:
    sources = source if isinstance(source, list) else [source]
    names = [str(mapping(one).get("hub")).partition(":")[0] for one in sources if mapping(one).get("hub")]
    if isinstance(source, Mapping) and "hub" not in source:
        names = [str(one["hub"]).partition(":")[0] for one in source.values() if mapping(one).get("hub")]
    return list(dict.fromkeys(names))


def _base_models(facts: Facts) -> list[str]:
    """Return whose weights it started with, if they are on the hub; else its teacher."""
    fit = facts.fits[0] if facts.fits else {}
    for part in ("student", "teacher"):
        if name := mapping(fit.get(part)).get("hub"):
            return [str(name)]
        if mapping(fit.get(part)):  # it started with a local model, of which the hub knows nothing
            break
    return []


def _library(facts: Facts) -> str:
    if facts.manifest:
        kind = str(facts.manifest.get("format")).removesuffix("-int8")
        return {"torch-export": "pytorch", "litert": "tflite"}.get(kind, kind)
    return "sentence-transformers" if _of_sentence_transformers(facts) else "transformers"


def _of_sentence_transformers(facts: Facts) -> bool:
    return not facts.headless and (facts.task_name == "Reranking" or facts.task.auto_class == "AutoModel")


def _tags(facts: Facts, library: str) -> list[str]:
    taught = facts.details.get("teacher") is not None
    kind = [str(facts.manifest["format"])] if facts.manifest else []
    if library == "sentence-transformers":
        kind = ["cross-encoder"] if facts.task_name == "Reranking" else ["feature-extraction"]
    return [*(["knowledge-distillation"] if taught else []), "lightning-distilbert", *kind]


def _results(facts: Facts, datasets: list[str]) -> list[EvalResult]:
    recorded = str(mapping(facts.data.get("source")).get("hub") or "")
    config = recorded.partition(":")[2] if recorded.partition(":")[0] in datasets[:1] else ""
    results = []
    for split, scores in facts.scores.items():
        for metric, value in scores.items():
            if value is None or metric == "loss":
                continue
            kind, words = metric_words(metric)
            results.append(
                EvalResult(
                    task_type=pipeline_tag(facts),
                    dataset_type=datasets[0] if datasets else "unknown",  # the format wants one
                    dataset_name=datasets[0] if datasets else data_name(facts),
                    dataset_config=config or None,
                    dataset_split=split_of(split),
                    metric_type=kind,
                    metric_name=words,
                    metric_value=round(value, 6),
                )
            )
    return results
