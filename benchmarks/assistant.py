"""The assistant: intents (CLINC150), slots (ATIS), knowledge (StackFAQ and SQuAD contexts), and all of it together.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.assistant --stages intents
    python -m benchmarks.assistant --stages requests      # intents and slots of ATIS
    python -m benchmarks.assistant --stages search
    python -m benchmarks.assistant --stages reader
    python -m benchmarks.assistant --stages turns
    python -m benchmarks.assistant --table docs/tasks/assistant.md      # from the stored results

Teachers are made of all-MiniLM-L6-v2 (6 layers), students of 3 layers are cut out of them and start from the same
weights. "plain" is fine-tuned on the same labels for the same steps. The search of the teacher is that model as it is;
the student's is distilled on the texts to be searched, without questions. Thresholds and temperatures are chosen on
validation data: CLINC150's own split, 500 requests of ATIS's training data that are not trained on, and one half of the
paraphrases of each FAQ with the questions of one half of the SQuAD articles and texts of CLINC150 that nothing answers.
The reader is that of ``benchmarks.squad`` where its folders are there, else one trained here, on fewer questions.

A turn is one message to an assistant that knows nothing of the one before, on one thread; teacher and student are asked
in turn. It is of the right part if a request in scope is taken for one, a question of the FAQ or of SQuAD answered from
the knowledge, and a text out of scope with "I don't know". The answer is right if the intent is; if the source is that
of the FAQ; if the answer read has the words of SQuAD's (F1, counted as such); and if it is "I don't know".
"""

import argparse
import contextlib
import json
import random
import time

import torch
from pytorch_lightning import seed_everything

from benchmarks.common import CACHE, Store, fit, layerwise, pretrained, root
from lightning_distilbert import (
    DistillationModule,
    IntentClassification,
    QuestionAnswering,
    QuestionAnsweringData,
    Retrieval,
    RetrievalData,
    Student,
    TextClassification,
    TextClassificationData,
    TokenClassification,
    TokenClassificationData,
    load,
)
from lightning_distilbert.assistant import Assistant, Context, Knowledge
from lightning_distilbert.data import read_atis, read_beir, read_clinc150, read_questions
from lightning_distilbert.data.tags import entities_of, labels_for
from lightning_distilbert.prediction import evaluating
from lightning_distilbert.quickstart.run import objectives as search_objectives
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.report.table import Table, replace_region
from lightning_distilbert.squad_scores import answer_scores

STAGES = ("intents", "requests", "search", "reader", "turns")
KINDS = ("teacher", "plain", "distilled")
GROUPS = {"intent": "requests", "faq": "FAQ", "squad": "SQuAD", "oos": "out of scope"}
TITLES = {"teacher": "teacher, 6 layers", "plain": "student, fine-tuned", "distilled": "student, distilled"}
SEED = 0


class Benchmark:
    def __init__(self, limit=None):
        self.limit = limit
        name = "assistant" if limit is None else "assistant-smoke"
        self.store, self.folder = Store(name), CACHE / name

    def flags(self, epochs):
        if self.limit is None:
            return {"max_epochs": epochs}
        return {"max_epochs": 1, "limit_train_batches": 2, "enable_progress_bar": False}

    def some(self, rows, seed=SEED):
        rows = list(rows)
        random.Random(seed).shuffle(rows)
        return rows if self.limit is None else rows[: self.limit]

    def make(self, name, kind, task, splits, data, epochs):
        """Train a model of a kind, unless it is there, choose its thresholds, and return it."""
        folder = self.folder / f"{name}-{kind}"
        if (folder / "config.json").is_file():
            return load(folder)
        seed_everything(SEED)
        teacher = self.folder / f"{name}-teacher"
        if kind == "teacher":
            module = DistillationModule(task, student=pretrained(), learning_rate=1e-4)
        elif kind == "plain":
            module = DistillationModule(task, student=Student(layers=3, source=str(teacher)), learning_rate=2e-4)
        else:
            student = Student(layers=3)
            module = DistillationModule(
                task, teacher=str(teacher), student=student, objectives=layerwise(), learning_rate=2e-4
            )
        seconds = fit(module, data(splits), **self.flags(epochs))
        print(f"{name}, {kind}: trained in {seconds:.0f} s", flush=True)
        module.thresholds |= self.chosen(module, splits.get("validation"), data)
        module.save_student(folder)
        return load(folder)

    def chosen(self, module, rows, data):
        """What the task chooses on validation rows, in float32, as the saved student answers."""
        if not isinstance(module.task, IntentClassification):
            return {}
        found = measure(module, data({"test": rows}))
        return {name.removeprefix("threshold/"): value for name, value in found.items() if "threshold/" in name}

    # -- CLINC150 ------------------------------------------------------------------------------------------------------

    def intents(self, kind):
        splits = {split: self.some(rows) for split, rows in read_clinc150(root() / "clinc150/data_full.json").items()}
        labels = sorted({row["label"] for row in read_clinc150(root() / "clinc150/data_full.json")["train"]})
        task = IntentClassification(labels=labels)

        def data(parts):
            return TextClassificationData(parts, batch_size=32, max_length=64, tokenizer=pretrained())

        return self.make("intents", kind, task, splits, data, 10), splits, data

    def stage_intents(self):
        for kind in KINDS:
            if f"intents/{kind}" in self.store.read():
                continue
            module, splits, data = self.intents(kind)
            raw = measure(module, data({"test": splits["test"]}))
            found = measure(module, data({"test": splits["test"]}), module.thresholds)
            names = ("accuracy", "in_scope_accuracy", "oos_recall", "oos_auroc", "ece")
            run = {name: round(found[name], 4) for name in names if name in found} | module.thresholds
            run["ece before"] = round(raw["ece"], 4)
            self.add(f"intents/{kind}", run | self.other_scores(module, data({"test": splits["test"]})))

    def other_scores(self, module, data):
        """AUROC of other scores than the highest probability in scope, from the same logits."""
        from torchmetrics.functional.classification import binary_auroc

        metric = gathered(module, data)
        logits, labels = torch.cat(metric.logits), torch.cat(metric.labels)
        outside, inside = labels == metric.out_of_scope, torch.ones(logits.shape[1], dtype=torch.bool)
        inside[metric.out_of_scope] = False
        scores = {
            "energy in scope": logits[:, inside].logsumexp(dim=1),
            "highest logit in scope": logits[:, inside].amax(dim=1),
            "probability of out of scope": -logits.softmax(dim=1)[:, metric.out_of_scope],
        }
        order = {name: score.argsort().argsort() / len(score) for name, score in scores.items()}  # ranks in [0, 1]
        return {
            f"auroc, {name}": round(float(binary_auroc(1 - rank, outside.long())), 4) for name, rank in order.items()
        }

    # -- ATIS ----------------------------------------------------------------------------------------------------------

    def requests(self, kind):
        rows = self.some(read_atis(root() / "atis/atis.train.w-intent.iob"))
        test = read_atis(root() / "atis/atis.test.w-intent.iob")[: self.limit]
        held = len(rows) // 10
        splits = {"train": rows[held:], "validation": rows[:held]}
        whole = read_atis(root() / "atis/atis.train.w-intent.iob")
        intents = sorted({row["label"] for row in [*whole, *test]})
        tags = [tag for row in [*whole, *test] for tag in row["tags"]]
        names = labels_for({entity.type for row in [*whole, *test] for entity in entities_of(row["tags"])})
        assert set(tags) <= set(names)

        def texts(parts):
            return TextClassificationData(parts, batch_size=32, max_length=64, tokenizer=pretrained())

        def words(parts):
            # named, since what is measured alone has no module to take them from, and the test split lacks some
            options = {"labels": names, "scheme": "iob2", "tokenizer": pretrained()}
            return TokenClassificationData(parts, batch_size=32, max_length=64, **options)

        classifier = self.make("requests", kind, TextClassification(labels=intents), splits, texts, 10)
        tagger = self.make("slots", kind, TokenClassification(labels=names), splits, words, 10)
        return classifier, tagger, test, words

    def stage_requests(self):
        for kind in KINDS:
            if f"requests/{kind}" in self.store.read():
                continue
            classifier, tagger, test, words = self.requests(kind)
            f1 = measure(tagger, words({"test": test}))["f1"]
            answers = classifier.predict([row["text"] for row in test])
            intent = torch.tensor([answer["label"] == row["label"] for answer, row in zip(answers, test, strict=True)])
            found = tagger.predict([row["tokens"] for row in test])
            slots = torch.tensor(
                [slots_of(entities) == slots_in(row) for entities, row in zip(found, test, strict=True)]
            )
            run = {
                "slot f1": round(f1, 4),
                "intent": share(intent),
                "slots": share(slots),
                "both": share(intent & slots),
            }
            self.add(f"requests/{kind}", run)

    # -- knowledge -----------------------------------------------------------------------------------------------------

    def passages(self):
        """FAQs with their answers, and SQuAD contexts to be read."""
        faq = read_beir(root() / "stackfaq/beir", "test")
        rows = [
            {"text": text, "answer": text, "source": name}
            for text, name in zip(faq.documents, faq.document_ids, strict=True)
        ]
        questions = [
            (text, faq.document_ids[next(iter(found))]) for text, found in zip(faq.queries, faq.relevant, strict=True)
        ]
        squad = read_questions(root() / "squad/dev-v1.1.json")
        every = list(dict.fromkeys(row["context"] for row in squad))[::4]
        contexts = {text: f"squad/{number}" for number, text in enumerate(self.some(every))}
        rows += [{"text": text, "source": name} for text, name in contexts.items()]
        if self.limit is not None:
            rows = [row | {"text": row["text"][:200]} for row in rows]
        titles = sorted({row["title"] for row in squad})
        random.Random(SEED).shuffle(titles)
        halves = {"validation": set(titles[::2]), "test": set(titles[1::2])}
        known = [row for row in squad if row["context"] in contexts]
        clinc = read_clinc150(root() / "clinc150/data_full.json")
        splits = {}
        for place, (split, half) in enumerate(halves.items()):
            asked = self.some(row for row in known if row["title"] in half)[:600]
            splits[split] = {
                "faq": self.some(questions[place::2]),
                "squad": [(row["question"], contexts[row["context"]], row["answers"]) for row in asked],
                "oos": self.some(row["text"] for row in clinc[split] if row["label"] == "oos")[:600],
                "intent": self.some((row["text"], row["label"]) for row in clinc[split] if row["label"] != "oos")[:600],
            }
        return rows, splits

    def stage_search(self):
        rows, splits = self.passages()
        for kind in ("teacher", "distilled"):
            if f"search/{kind}" in self.store.read():
                continue
            seed_everything(SEED)
            if kind == "teacher":
                module = DistillationModule(Retrieval(), student=pretrained())
            else:
                module = DistillationModule(
                    Retrieval(), teacher=pretrained(), student=Student(layers=3, source=pretrained(), dropout=0.0),
                    objectives=search_objectives(), task_weight=0.0, learning_rate=2e-4,
                )  # fmt: skip
                texts = [row["text"] for row in rows]
                pairs = [{"query": text[:200], "document": text} for text in texts]
                data = RetrievalData({"train": pairs}, batch_size=32, max_length=256)
                print(f"search: trained in {fit(module, data, **self.flags(8)):.0f} s", flush=True)
            knowledge = Knowledge(module, rows)
            questions, sources = [], []
            for text, source, *_ in [*splits["validation"]["faq"], *splits["validation"]["squad"]]:
                questions.append(text)
                sources.append(source)
            questions += splits["validation"]["oos"]
            knowledge.choose_threshold(questions, [*sources, *[None] * len(splits["validation"]["oos"])])
            knowledge.save(self.folder / f"search-{kind}")
            run = {"threshold": round(knowledge.threshold, 4)}
            for name in ("faq", "squad"):
                asked = splits["test"][name]
                found = knowledge.search_all([item[0] for item in asked], 1)
                right = [row[0].passage.source == item[1] for row, item in zip(found, asked, strict=True)]
                sure = [row[0].score >= knowledge.threshold for row in found]
                run |= {f"{name} found": share(torch.tensor(right)), f"{name} answered": share(torch.tensor(sure))}
            found = knowledge.search_all(splits["test"]["oos"], 1)
            run["left"] = share(torch.tensor([row[0].score < knowledge.threshold for row in found]))
            self.add(f"search/{kind}", run)

    def stage_reader(self):
        for kind in ("teacher", "distilled"):
            theirs = CACHE / "squad" / kind
            if (theirs / "config.json").is_file() and self.limit is None:
                print(f"reader, {kind}: {theirs}")
                continue
            rows = read_questions(root() / "squad/train-v1.1-aqleaderboard-44articles.json")

            def data(parts):
                return QuestionAnsweringData(parts, batch_size=32, tokenizer=pretrained())

            self.make("reader", kind, QuestionAnswering(), {"train": self.some(rows)}, data, 1)

    # -- together ------------------------------------------------------------------------------------------------------

    def assistant(self, kind):
        reader = CACHE / "squad" / kind
        if not (reader / "config.json").is_file() or self.limit is not None:
            reader = self.folder / f"reader-{kind}"
        part = {name: self.folder / f"{name}-{kind}" for name in ("intents", "slots", "search")}
        flight = {name: {"ask": f"{name}?", "also": []} for name in ("fromloc.city_name", "toloc.city_name")}
        labels = [label for label in load(part["intents"]).labels if label != "oos"]
        script = {"intents": {label: {"slots": flight if label == "book_flight" else {}} for label in labels}}
        return Assistant.load(part["intents"], part["slots"], part["search"], reader, script=script)

    def stage_turns(self):
        torch.set_num_threads(1)
        kinds, stored = ("teacher", "distilled"), self.store.read()
        # those that were stored with one time for all groups are measured again
        if all("milliseconds" in stored.get(f"turns/{kind}", {}).get("oos", {}) for kind in kinds):
            return
        _, splits = self.passages()
        speakers = {kind: self.assistant(kind) for kind in kinds}
        runs, spent = {kind: {} for kind in kinds}, {kind: [] for kind in kinds}
        with contextlib.ExitStack() as stack:
            for speaker in speakers.values():
                stack.enter_context(evaluating(speaker.knowledge.encoder))
            for group in GROUPS:
                asked = splits["test"][group]
                for kind, (replies, times) in turns(speakers, asked).items():
                    runs[kind][group] = judged(group, asked, replies) | {"milliseconds": quantiles(times)}
                    spent[kind] += times
        for kind, run in runs.items():
            self.add(f"turns/{kind}", run | {"milliseconds": quantiles(spent[kind])})

    def add(self, key, run):
        self.store.add(key, run)
        print(f"{key}: {json.dumps(run)}", flush=True)


def gathered(module, data, thresholds=None):
    """The metric of a task with all that is counted on the test split."""
    data.setup("test")
    metric = module.task.new_metrics()
    if isinstance(getattr(metric, "thresholds", None), dict):
        metric.thresholds = dict(thresholds or {})
    with evaluating(module):
        for batch in data.test_dataloader():
            module.task.update_metrics(metric, module(batch), batch)
    return metric


def measure(module, data, thresholds=None):
    return {name: float(value) for name, value in gathered(module, data, thresholds).compute().items()}


def slots_of(entities):
    return [(entity["label"], entity["start"], entity["end"]) for entity in entities]


def slots_in(row):
    return [tuple(entity) for entity in entities_of(row["tags"])]


def share(right):
    """A share of rows with its interval."""
    return [round(value, 4) for value in bootstrap_interval(right.double())]


def quantiles(times):
    places = torch.tensor([0.5, 0.95], dtype=torch.float64)
    found = torch.tensor(times, dtype=torch.float64).quantile(places)
    return {"p50": round(float(found[0]), 1), "p95": round(float(found[1]), 1)}


def turns(speakers, asked):
    """Say each message to all in turn, in dialogues of their own; return the replies and milliseconds of each.

    A machine that slows down slows all of them, and none is always the first.
    """
    found = {kind: ([], []) for kind in speakers}
    for number, item in enumerate(asked):
        message = item if isinstance(item, str) else item[0]
        for kind in list(speakers)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            reply = speakers[kind].reply(message, Context())
            found[kind][1].append(1000 * (time.perf_counter() - start))
            found[kind][0].append(reply)
    return found


def judged(group, asked, replies):
    """Count what came back."""
    part, right = [], []
    for item, reply in zip(asked, replies, strict=True):
        wanted = {"intent": ("intent", "slot"), "faq": ("knowledge",), "squad": ("knowledge",), "oos": ("unknown",)}
        part.append(reply.part in wanted[group])
        source = reply.source and reply.source["source"]
        if group == "intent":
            right.append(float(part[-1] and reply.intent == item[1]))
        elif group == "faq":
            right.append(float(source == item[1]))
        elif group == "squad":
            texts = [answer["text"] for answer in item[2]]
            right.append(answer_scores(reply.text, texts)[1] if part[-1] else 0.0)
        else:
            right.append(float(part[-1]))
    return {"part": share(torch.tensor(part)), "right": share(torch.tensor(right))}


def cell(value):
    return (
        "" if value is None else "{:.3f} [{:.3f}, {:.3f}]".format(*value) if isinstance(value, list) else f"{value:.4g}"
    )


def milliseconds(run):
    """The times of a group of messages, which older results have of all groups together alone."""
    return "{p50:.0f} / {p95:.0f}".format(**run["milliseconds"]) if "milliseconds" in run else ""


def tables(results):
    """One table for each stage."""
    columns = {
        "intents": ("CLINC150", ["in_scope_accuracy", "oos_recall", "oos_auroc", "ece before", "ece", "temperature"]),
        "requests": ("ATIS", ["slot f1", "intent", "slots", "both"]),
        "search": ("Knowledge", ["faq found", "squad found", "faq answered", "squad answered", "left"]),
    }
    found = []
    for stage, (title, names) in columns.items():
        runs = {kind: results[f"{stage}/{kind}"] for kind in KINDS if f"{stage}/{kind}" in results}
        rows = [[TITLES[kind], *(cell(run.get(name)) for name in names)] for kind, run in runs.items()]
        if rows:
            found.append(Table([title, *(name.replace("_", " ") for name in names)], rows))
    rows = []
    for kind in KINDS:
        run = results.get(f"turns/{kind}")
        for title, part in ((title, run[group]) for group, title in GROUPS.items() if run):
            rows.append([f"{TITLES[kind]}: {title}", cell(part["part"]), cell(part["right"]), milliseconds(part)])
        if run:
            rows.append([f"{TITLES[kind]}: all", "", "", milliseconds(run)])
    if rows:
        found.append(Table(["turns", "right part", "right answer", "p50 / p95, ms"], rows))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--limit", type=int, help="so many rows only, and two steps: to try it; stored apart")
    parser.add_argument("--table", nargs="*", help="only write the tables into these files")
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments.limit)
    if arguments.table is None:
        for stage in arguments.stages:
            getattr(benchmark, f"stage_{stage}")()
    found = tables(benchmark.store.read())
    print("\n\n".join(one.to_text() for one in found))
    for file in arguments.table or []:
        replace_region(file, "assistant", "\n\n".join(one.to_markdown() for one in found))


if __name__ == "__main__":
    main()
