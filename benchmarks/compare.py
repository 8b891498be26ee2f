"""Teachers, students and their artefacts side by side, as `lightning-distilbert compare` draws them up.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.compare --sets squad --formats onnx-int8 executorch
    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.compare --sets translation
    python -m benchmarks.compare --table docs/compare.md   # from the stored comparisons

The models are those that `benchmarks.squad` (teacher, plain, distilled) and `benchmarks.translation` (teacher) left in
`benchmarks/cache`. Artefacts that are not there are exported first, with the gate of 0.99 on the rows of the
comparison. For question answering these are the first 1,000 questions of whole articles of SQuAD v1.1's dev set in an
order drawn by seed 0; for translation all of Multi30k's test2016, searched greedily as in
validation. ExecuTorch has an environment of its own (`make test-executorch`), in which the other formats' packages may
be installed too.
"""

import argparse
import random
import shutil

from benchmarks.common import CACHE, HERE, root
from lightning_distilbert import deploy
from lightning_distilbert.data import read_questions
from lightning_distilbert.report.comparison import Comparison, compare
from lightning_distilbert.report.comparison_tables import tables
from lightning_distilbert.report.table import replace_region


def questions():
    rows = read_questions(root() / "squad" / "dev-v1.1.json")
    titles = sorted({row["title"] for row in rows})
    random.Random(0).shuffle(titles)
    return {"validation": [row for title in titles for row in rows if row["title"] == title][:1000]}, {}


def translations():
    return {"validation": str(root() / "multi30k" / "test_2016_flickr")}, {"languages": ["en", "de"]}


# the rows, the models by name, and which one is exported
SETS = {
    "squad": (questions, {"teacher": "teacher", "fine-tuned": "plain", "distilled": "distilled"}, "distilled"),
    "translation": (translations, {"teacher": "teacher"}, "teacher"),
}


def measure(name, formats, options):
    rows, sources, exported = SETS[name]
    evaluation, reading = rows()
    models = {title: CACHE / name / folder for title, folder in sources.items()}
    for kind in formats:
        target = CACHE / "compare" / f"{name}-{kind}"
        if not target.exists():
            deploy.export(models[exported], target, kind, evaluation, reading=reading)
        models[f"{exported}-{kind.removeprefix('onnx-')}"] = target
    command = f"python -m benchmarks.compare --sets {name} --formats {' '.join(formats)}"
    found = compare(models, evaluation, reading=reading, command=command, **options)
    print(found.to_text())
    written = found.write(CACHE / "compare" / name, overwrite=True)
    json_file = next(path for path in written if path.suffix == ".json")
    shutil.copy(json_file, HERE / "results" / f"compare-{name}.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--formats", nargs="+", default=["onnx-int8"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--table", nargs="*", help="only write the tables into these files")
    arguments = parser.parse_args()
    if arguments.table is None:
        for name in arguments.sets:
            measure(name, arguments.formats, {"threads": arguments.threads, "repeats": arguments.repeats})
        return
    for name in arguments.sets:
        found = Comparison.read(HERE / "results" / f"compare-{name}.json")
        text = "\n\n".join(f"{title}:\n\n{table.to_markdown()}" for title, table in tables(found))
        for file in arguments.table:
            replace_region(file, f"compare-{name}", text)


if __name__ == "__main__":
    main()
