"""Multi30k, English to German: does a pretrained DistilBERT encoder help, and a teacher?

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.translation                     # all that is not stored yet
    python -m benchmarks.translation --kinds teacher                                   # or stage by stage
    python -m benchmarks.translation --kinds corpus
    python -m benchmarks.translation --kinds scratch pretrained --seeds 0
    python -m benchmarks.translation --table docs/tasks/translation.md                  # from the stored results

Three students of one size: (a) the encoder from random weights, (b) the encoder all-MiniLM-L6-v2 as a DistilBERT, and
(c) as b, distilled from a larger model that is trained here: word by word, by its translations, or both. All decoders
start from random weights. A pretrained encoder learns at a fifth of the decoder's rate, the default of `Translation`;
"one rate" is what comes of it without that. Students see the same number of steps and batches of the same order, write
the same 8,000 sub-words of the teacher's tokenizer, and are scored after the last step, no checkpoint being chosen, on
test2016 (flickr) with a search of 4 beams: BLEU and chrF of sacrebleu, whose signatures are stored. Each run is stored
with the counts of each sentence, so that an interrupted benchmark goes on and intervals are computed again.
"""

import argparse
import itertools
import statistics
import time

import torch
from pytorch_lightning import seed_everything

from benchmarks.common import CACHE, Store, fit, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    SoftTargets,
    Student,
    Translation,
    TranslationData,
    TranslationStudent,
    auto_precision,
    load,
)
from lightning_distilbert.corpus_translation import translate_corpus
from lightning_distilbert.data.parallel import open_parallel, read_files
from lightning_distilbert.metrics_translation import TranslationScores
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.report.measure import count_parameters
from lightning_distilbert.report.table import Table, replace_region

LANGUAGES = ["en", "de"]
VOCABULARY, POSITIONS, BATCH = 8000, 96, 64
SETTINGS = {"teacher": {"steps": 2500, "lr": 5e-4}, "student": {"steps": 2000, "lr": 5e-4}}
DECODERS = {"teacher": {"decoder_layers": 6}, "student": {"decoder_layers": 2}}
TITLES = {
    "teacher": "teacher: pretrained encoder, decoder of 6 layers",
    "scratch": "a: encoder from scratch",
    "pretrained": "b: pretrained encoder",
    "word": "c: b, soft targets of the teacher",
    "sequence": "c: b, on the teacher's translations",
    "both": "c: b, on the teacher's translations with its soft targets",
    "pretrained, one rate": "b, the encoder at the decoder's rate",
    "both, one rate": "c, the encoder at the decoder's rate",
}
DEFAULT = ("teacher", "corpus", "scratch", "pretrained", "word", "both")
STUDENTS = ("scratch", "pretrained", "word", "sequence", "both", "pretrained, one rate", "both, one rate")


def folder_of(store):
    return CACHE / store.path.stem


def splits(limit):
    """The two files of a split, or the first pairs of them as rows."""
    names = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    found = open_parallel({split: str(root() / "multi30k" / name) for split, name in names.items()}, LANGUAGES)
    if limit is None:
        return found
    pairs = {split: read_files(files) for split, files in found.items()}
    return {
        split: [{"source": a, "target": b} for a, b in list(zip(*both, strict=True))[:limit]]
        for split, both in pairs.items()
    }


def encoder(pretraining):
    """MiniLM's six layers as a DistilBERT, or the same with random weights."""
    described = Student(source=pretrained(), layers=6, architecture="distilbert")
    if pretraining:
        return described
    config = described.build().config.to_dict()
    return Student(config={name: value for name, value in config.items() if name != "initialised_from"})


def describe(kind, folder):
    if kind == "teacher":
        sizes = {"vocab_size": VOCABULARY, **DECODERS["teacher"]}
    else:  # all students write the teacher's sub-words, so that their scores compare
        sizes = {"target_tokenizer": str(folder / "teacher"), **DECODERS["student"]}
    return TranslationStudent(encoder(kind != "scratch"), max_target_positions=POSITIONS, **sizes)


def score(module, data, beams, limit):
    """Translate the test split, score it, and count what each sentence has in common with its reference."""
    rows = splits(limit)["test"]
    pairs = [(row["source"], row["target"]) for row in rows] if limit else list(zip(*read_files(rows), strict=True))
    texts, references = ([pair[side] for pair in pairs] for side in (0, 1))
    module.task.num_beams = beams
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=auto_precision() == "bf16-mixed"):
        found = module.predict(texts, batch_size=50)
    seconds = time.perf_counter() - start
    print("\n".join(f"{text}\n  {translation}" for text, translation in zip(texts[:3], found[:3], strict=True)))
    scores = TranslationScores()
    scores.update(found, references)
    counts = {
        name: counter._extract_corpus_statistics(found, [references]) for name, counter in scores.counters().items()
    }
    values = {name: round(value.item(), 2) for name, value in scores.compute().items()}
    return values | {
        "counts": {name: [" ".join(map(str, row)) for row in rows] for name, rows in counts.items()},
        "signatures": scores.signatures,
        "translate_seconds": round(seconds, 1),
    }


def corpus(store, arguments):
    """Let the teacher translate the training split, once; an interrupted run goes on."""
    folder = folder_of(store)
    output = folder / "distilled.jsonl"
    if output.exists() and not arguments.overwrite:
        return
    files = splits(None)["train"]
    texts = files[0]
    if arguments.limit:
        texts = folder / "train.en"
        texts.write_text("\n".join(row["source"] for row in splits(arguments.limit)["train"]) + "\n")
    start = time.perf_counter()
    count = translate_corpus(folder / "teacher", texts, output, num_beams=4, batch_size=64, overwrite=True)
    print(f"corpus: {count} texts translated in {time.perf_counter() - start:.0f} s", flush=True)


def run(store, kind, seed, arguments):
    key = f"{kind}/{seed}"
    if key in store.read() and not arguments.overwrite:
        return
    folder = folder_of(store)
    settings = dict(SETTINGS["teacher" if kind == "teacher" else "student"], batch=BATCH)
    settings["steps"] = arguments.steps or settings["steps"]
    seed_everything(seed)
    kind, _, one_rate = kind.partition(", ")
    # an encoder from random weights learns as fast as the decoder
    task = Translation(encoder_rate=1.0) if one_rate or kind == "scratch" else Translation()
    common = {"task": task, "learning_rate": settings["lr"], "warmup": 0.1}
    student = describe(kind, folder)
    if kind in ("word", "both"):
        teaching = {"objectives": [SoftTargets(temperature=1.0, weight=1.0)], "task_weight": 0.5}
        module = DistillationModule(teacher=str(folder / "teacher"), student=student, **teaching, **common)
    else:
        module = DistillationModule(student=student, tokenizer=pretrained(), **common)
    source = splits(arguments.limit)
    if kind in ("sequence", "both"):
        source["train"] = str(folder / "distilled.jsonl")
    data = TranslationData(source, batch_size=BATCH, max_length=POSITIONS, seed=seed)
    seconds = fit(module, data, max_steps=settings["steps"], max_epochs=-1)
    found = score(module, data, arguments.beams, arguments.limit)
    if kind == "teacher":
        module.save_student(folder / "teacher")
        load(folder / "teacher")
    parts = {"seconds": round(seconds), "settings": settings, "parameters": count_parameters(module.student)}
    store.add(key, found | parts | {"beams": arguments.beams})
    print(f"{key}: BLEU {found['bleu']:.2f}, chrF {found['chrf']:.2f} after {seconds:.0f} s", flush=True)


def scored(counter):
    """Return the score of a corpus as a function of the counts of its sentences, as the mean over the seeds."""

    def value(*columns):
        totals = [column.sum(dim=0).long().tolist() for column in columns]
        return torch.tensor(statistics.mean(counter._compute_score_from_stats(total).score for total in totals))

    return value


def columns_of(runs, name):
    """The counts of each sentence: a tensor (sentences, numbers) for each seed."""
    return [torch.tensor([[float(n) for n in row.split()] for row in run["counts"][name]]) for run in runs]


def runs_of(results, kind):
    """The runs of a kind by their seeds."""
    return {key.rpartition("/")[2]: run for key, run in sorted(results.items()) if key.startswith(f"{kind}/")}


def difference(value, runs, base, places=slice(None)):
    """By how much runs score more than others in BLEU, with its interval, over the seeds that both have."""
    seeds = [seed for seed in runs if seed in base]
    if not seeds:
        return ""
    own, other = (columns_of([some[seed] for seed in seeds], "bleu") for some in (runs, base))
    columns = [column[places] for column in (*own, *other)]
    found = bootstrap_interval(columns, lambda *drawn: value(*drawn[: len(own)]) - value(*drawn[len(own) :]))
    return shown(found, "+")


def shown(found, sign=""):
    return f"{found.value:{sign}.1f} [{found.low:{sign}.1f}, {found.high:{sign}.1f}]"


def table(results):
    counters = TranslationScores().counters()
    body = []
    for kind, title in TITLES.items():
        runs = runs_of(results, kind)
        if not runs:
            continue
        every, gain = list(runs.values()), ""
        cells = [shown(bootstrap_interval(columns_of(every, name), scored(counters[name]))) for name in counters]
        if kind in STUDENTS and kind != "pretrained":
            base = "pretrained, one rate" if kind == "both, one rate" else "pretrained"
            gain = difference(scored(counters["bleu"]), runs, runs_of(results, base))
        scores = [run["bleu"] for run in every]
        deviation = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        steps, minutes = every[0]["settings"]["steps"], statistics.mean(run["seconds"] for run in every) / 60
        size = f"{every[0]['parameters'] / 1e6:.1f} M"
        body.append([title, *cells, deviation, gain, size, steps, f"{minutes:.0f}", len(every)])
    names = ["model", "BLEU [95 %]", "chrF [95 %]", "seeds' s.d.", "BLEU against b [95 %]", "parameters", "steps"]
    return Table([*names, "minutes", "seeds"], body, align="lrrrrrrrr")


def lengths_table(results):
    """BLEU of the students by the reference's length, a quarter of the sentences in each row; equal lengths in one."""
    runs = {kind: runs_of(results, kind) for kind in ("scratch", "pretrained", "both")}
    if not all(runs.values()):
        return None
    columns = {kind: columns_of(own.values(), "bleu") for kind, own in runs.items()}
    value = scored(TranslationScores().counters()["bleu"])
    lengths = columns["pretrained"][0][:, 1].contiguous()  # after a translation's own length sacrebleu has this one
    bounds = lengths.quantile(torch.tensor([0.25, 0.5, 0.75]))
    quarters = torch.bucketize(lengths, bounds)
    body = []
    for places in [*(quarters == number for number in range(len(bounds) + 1)), quarters >= 0]:
        few, many = (int(end(lengths[places])) for end in (torch.min, torch.max))
        cells = [f"{value(*(column[places] for column in own)).item():.1f}" for own in columns.values()]
        cells += [difference(value, runs[kind], runs[other], places) for other, kind in itertools.pairwise(runs)]
        body.append([f"{few} to {many}", int(places.sum()), *cells])
    names = ["a: scratch", "b: pretrained", "c: distilled", "b - a [95 %]", "c - b [95 %]"]
    return Table(["BLEU by the reference's tokens", "sentences", *names], body)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(DEFAULT), choices=["corpus", *TITLES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, help="in place of the settings' number, for teacher and students alike")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--limit", type=int, help="pairs of each split, for a look; the results are kept apart")
    parser.add_argument("--overwrite", action="store_true", help="run again what is stored")
    parser.add_argument("--table", nargs="*", help="only write the table into these files")
    arguments = parser.parse_args()
    store = Store("translation" if arguments.limit is None else "translation-limited")
    if arguments.table is None:
        if "teacher" in arguments.kinds:
            run(store, "teacher", 0, arguments)
        if "corpus" in arguments.kinds:
            corpus(store, arguments)
        for seed in arguments.seeds:
            for kind in arguments.kinds:
                if kind in STUDENTS:
                    run(store, kind, seed, arguments)
    results = store.read()
    if not results:
        parser.error("nothing is stored yet: run --kinds teacher first")
    tables = [found for found in (table(results), lengths_table(results)) if found]
    print("\n\n".join(found.to_text() for found in tables))
    signatures = {signature for run in results.values() for signature in run["signatures"].values()}
    print("\n".join(sorted(signatures)))
    for file in arguments.table or []:
        replace_region(file, "translation", "\n\n".join(found.to_markdown() for found in tables))


if __name__ == "__main__":
    main()
