"""The part of a model card that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_distilbert.card import snippets
from lightning_distilbert.card.facts import Facts, mapping
from lightning_distilbert.card.metadata import data_name, hub_names, known_languages, metric_words, split_of
from lightning_distilbert.deploy.manifest import runs_alone
from lightning_distilbert.report.table import Table, one_line

KINDS = {
    "AutoModelForSequenceClassification": "classifies texts",
    "AutoModelForTokenClassification": "finds entities in texts",
    "AutoModelForQuestionAnswering": "finds the answers to questions in a text",
    "AutoModelForMaskedLM": "fills in masked words",
    "AutoModelForSeq2SeqLM": "translates texts",
    "AutoModel": "embeds texts, so that those that mean alike are near each other",
}
FAMILIES = {
    "bert": "BERT",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "roberta": "RoBERTa",
}
MANY = 20  # labels that are listed


def body(facts: Facts, name: str, place: str, repo: str | None, given: Mapping[str, Any], table: str | None) -> str:
    """Return the Markdown below the metadata.

    Args:
        facts: What the folder says.
        name: The title.
        place: The folder, as its neighbours call it.
        repo: Its name on the hub, if it is there.
        given: What the user said, such as ``language``.
        table: A comparison with other models, in Markdown.
    """
    parts = [
        f"# {name}",
        _summary(facts, given),
        _sizes(facts),
        "## Use",
        _use(facts, place, repo),
        *(_kept(facts) if facts.manifest else _scores(facts, given)),
        *([] if table is None else ["## Compared with other models", table]),
        "## How it was made",
        *_making(facts, given),
        "## Limits",
        _limits(facts, given),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def code(text: Any) -> str:
    """Write a name as code, on one line."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def _summary(facts: Facts, given: Mapping[str, Any]) -> str:
    kind = _does(facts)
    taught = facts.details.get("teacher")
    how = f"It was distilled from {_model(facts, 'teacher', given)}" if taught else _untaught(facts, given)
    layers, _ = _encoder(facts)
    family = str(facts.config.get("model_type", "model"))
    if family == "encoder-decoder":
        return f"An encoder of {layers} layers with a decoder, that {kind}. {how}."
    return f"A {FAMILIES.get(family, family)} of {layers} layers that {kind}. {how}."


def _does(facts: Facts) -> str:
    if facts.headless:
        return f"encodes texts; it has no head yet, and is to be fine-tuned ({facts.task_name})"
    if facts.task_name == "Reranking":
        return "scores how well a document answers a query"
    kind = KINDS[facts.task.auto_class]
    problem = getattr(facts.task, "problem_type", "")
    what = "pairs of texts" if facts.pairs else "texts"
    if problem == "regression":
        return f"gives {what} a score"
    if problem:
        most = "any number" if problem == "multi_label_classification" else "one"
        return f"classifies {what}: {most} of {facts.task.num_labels} labels"
    return kind


def _untaught(facts: Facts, given: Mapping[str, Any]) -> str:
    if not facts.details or not facts.fits:
        return "How it was trained is not recorded"
    source = mapping((facts.fits or [{}])[0].get("student"))
    return f"It was fine-tuned from {_model(facts, 'student', given)}" if source else "It was trained without a teacher"


def _model(facts: Facts, part: str, given: Mapping[str, Any]) -> str:
    """Return a teacher's or a starting point's name, as a link where it is on the hub."""
    told = next((mapping(fit.get(part)) for fit in facts.fits if fit.get(part)), {})
    if hub := told.get("hub"):
        return f"[{one_line(hub)}](https://huggingface.co/{one_line(hub)})"
    name = told.get("path") or told.get("object")
    if name is None:  # a folder from before fits were noted
        return code(str(facts.details.get(part)).rstrip("/").rpartition("/")[2])
    return f"{code(name)}, which is not on the hub"


def _encoder(facts: Facts) -> tuple[Any, Any]:
    """Return the number of layers and the width of the part that reads."""
    config = mapping(facts.config.get("encoder")) or facts.config
    return config.get("num_hidden_layers", config.get("n_layers")), config.get("hidden_size", config.get("dim"))


def _sizes(facts: Facts) -> str:
    layers, width = _encoder(facts)
    rows = [
        ["architecture", code((facts.config.get("architectures") or ["unknown"])[0])],
        ["parameters", _millions(facts.parameters)],
        ["model files" if facts.manifest else "weights", f"{facts.bytes / 1e6:.1f} MB"],
        ["encoder", f"{layers} layers, {width} wide"],
        ["longest input", f"{facts.max_length} tokens" if facts.max_length else "not recorded"],
    ]
    if facts.manifest:
        rows.insert(0, ["format", code(facts.manifest.get("format"))])
    if facts.labels:
        shown = ", ".join(code(label) for label in facts.labels[:MANY])
        rest = f" and {len(facts.labels) - MANY} more" if len(facts.labels) > MANY else ""
        rows.append(["labels", shown + rest])
    return Table(["", ""], rows, align="ll").to_markdown()


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"


def _use(facts: Facts, place: str, repo: str | None) -> str:
    ours = snippets.with_us(facts, place, repo)
    where = "" if repo else f"The code runs in the folder that holds {code(place)}.\n\n"
    if facts.manifest:
        needs = "onnxruntime, tokenizers and numpy; it imports neither torch nor transformers"
        with_what = f", which here needs {needs}" if runs_alone(facts.manifest) else ""
        return f"{where}With `lightning_distilbert`{with_what}:\n\n```python\n{ours}```"
    packages, alone = snippets.without_us(facts, repo or place)
    note = _differences(facts)
    return (
        f"{where}With `lightning_distilbert`:\n\n```python\n{ours}```\n\n"
        f"With {packages} alone{note}:\n\n```python\n{alone}```"
    )


def _differences(facts: Facts) -> str:
    if facts.task_name == "IntentClassification" and not facts.headless:
        return ", which knows neither the threshold for texts out of scope nor the temperature of the probabilities"
    if facts.task.auto_class == "AutoModelForQuestionAnswering" and not facts.headless:
        return ", for texts that fit into one window"
    return ""


def _scores(facts: Facts, given: Mapping[str, Any]) -> list[str]:
    if not facts.scores:
        return []
    names = list(dict.fromkeys(metric for scores in facts.scores.values() for metric in scores))
    cells = [
        [metric_words(name)[1], *(_number(scores[name]) if name in scores else "" for scores in facts.scores.values())]
        for name in names
    ]
    table = Table(["metric", *(split_of(split) for split in facts.scores)], cells).to_markdown()
    where = ", ".join(hub_names("datasets", given.get("datasets"))) or data_name(facts)
    return ["## Scores", f"Measured on {'data without a name' if where == 'unnamed data' else code(where)}.", table]


def _kept(facts: Facts) -> list[str]:
    """Return what an export measured: the artefact's scores beside those of the student that it was made of."""
    found, checked = facts.evaluation, mapping(facts.manifest.get("verification"))
    far = checked.get("max_difference")
    outputs = (
        f"On {checked.get('rows')} rows its outputs differ from the student's by {far:.2g} at most, where those spread "
        f"by {checked.get('output_spread', 0.0):.2g}."
        if isinstance(far, (int, float))
        else ""
    )
    if not found:
        return ["## What it keeps", f"{outputs} What it keeps of the student's score was not measured."]
    student, own = mapping(found.get("student")), mapping(found.get("artefact"))
    cells = [[metric_words(name)[1], _number(student.get(name)), _number(value)] for name, value in own.items()]
    table = Table(["metric", "student", "artefact"], cells).to_markdown()
    said = (
        f"It keeps {found.get('retention', 0.0):.1%} of the student's {metric_words(str(found.get('metric')))[1]}, "
        f"measured on {code(found.get('source'))} through the artefact's own runtime. {outputs}"
    )
    return ["## What it keeps", said, table]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"


def _making(facts: Facts, given: Mapping[str, Any]) -> list[str]:
    details, parts = facts.details, []
    if not details and not facts.fits:
        return ["It was not made with lightning_distilbert, and nothing is recorded."]
    if details.get("teacher"):
        parts += [_teaching(facts, given), _loss_table(details)]
    parts += [
        item
        for number, fit in enumerate(facts.fits, 1)
        for item in _fit(fit, number, len(facts.fits), facts.max_length)
    ]
    if not facts.fits:
        parts.append("Data, steps, seed and versions were not recorded.")
    return parts


def _teaching(facts: Facts, given: Mapping[str, Any]) -> str:
    told = next((mapping(fit.get("teacher")) for fit in facts.fits if fit.get("teacher")), {})
    size = [
        str(told["architecture"]) if told.get("architecture") else "",
        f"{told['layers']} layers" if told.get("layers") else "",
        f"{_millions(told['parameters'])} parameters" if told.get("parameters") else "",
    ]
    about = ", ".join(word for word in size if word)
    text = f"**Teacher**: {_model(facts, 'teacher', given)}{f': {about}' if about else ''}. It was frozen."
    taken = facts.config.get("initialised_from")
    if taken:
        started = mapping((facts.fits or [{}])[0].get("student"))
        owner = _model(facts, "student", given) if started else "the teacher"
        text += (
            f"\n\n**Start**: the student's {len(taken)} layers are copies of the layers "
            f"{', '.join(map(str, taken))} of {owner}, counted from 0."
        )
    return text


def _loss_table(details: Mapping[str, Any]) -> str:
    weight = details.get("task_weight")
    rows = [["the task's own loss", _setting(weight), "", "how far off the training data the answers are"]]
    rows = rows if weight else []  # 0: no label was looked at
    for objective in details.get("objectives") or []:
        path, settings = str(objective.get("class_path")), dict(mapping(objective.get("init_args")))
        weight = settings.pop("weight", 1.0)
        listed = ", ".join(
            f"{name} {_setting(value)}" for name, value in settings.items() if value is not None and value is not False
        )
        rows.append([path.rpartition(".")[2], _setting(weight), listed, _meaning(path)])
    return (
        "**Loss**: the weighted sum of\n\n"
        + Table(["term", "weight", "settings", "what it is"], rows, "lrll").to_markdown()
    )


def _meaning(path: str) -> str:
    """Return the first sentence of what an objective of this package says of itself."""
    module, _, name = path.rpartition(".")
    if not module.startswith("lightning_distilbert."):
        return "an objective of the author's"
    from lightning_distilbert import objectives  # a saved folder decides nothing of what is imported

    found = getattr(objectives, name, None)
    return str(found.__doc__).partition("\n")[0].rstrip(".") if found is not None else ""


def _setting(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:  # a schedule
        options = sorted(mapping(value.get("init_args")).items(), key=lambda option: option[0] == "end")  # start, end
        inside = ", ".join(f"{name} {_setting(item)}" for name, item in options)
        return f"{str(value['class_path']).rpartition('.')[2]}({inside})"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else one_line(value)


def _fit(fit: Mapping[str, Any], number: int, of: int, longest: int | None) -> list[str]:
    data, versions = mapping(fit.get("data")), mapping(fit.get("versions"))
    head = "**Training**:" if of == 1 else f"**Training, part {number} of {of}**"
    if of > 1:
        head += f" ({'with the teacher' if fit.get('teacher') else 'without a teacher'}):"
    source = data.get("source")
    places = source if isinstance(source, list) else [source]
    if isinstance(source, Mapping) and not {"hub", "path", "object"} & set(source):
        places = [source.get("train") or next(iter(source.values()), None)]
    words = ", ".join(_place(one) for one in places if one) or "not recorded"
    rows = [["data", f"{words}, {data['rows']:,} rows" if data.get("rows") else words]]
    if data.get("unlabelled"):
        rows.append(["rows without labels among them", _place(data["unlabelled"])])
    if data.get("max_length"):
        rows.append(["tokens kept of a text", str(min(data["max_length"], longest or data["max_length"]))])
    rounds = fit.get("epochs")
    passes = f" ({rounds:g} {'pass' if rounds == 1 else 'passes'} over the data)" if rounds else ""
    rows.append(["steps", f"{fit.get('steps', 0):,}{passes}"])
    if data.get("batch_size"):
        times = [str(data["batch_size"])]
        times += [f"{fit['devices']} devices"] if (fit.get("devices") or 1) > 1 else []
        times += [f"{fit['accumulated']} batches"] if (fit.get("accumulated") or 1) > 1 else []
        rows.append(["rows in a step", " x ".join(times)])
    rate = f", learning rate {fit['learning_rate']:g}" if fit.get("learning_rate") else ""
    rows.append(["optimizer", f"{fit.get('optimizer')}{rate}, precision {fit.get('precision')}"])
    seeds = [f"{fit['seed']}" if fit.get("seed") is not None else "not set"]
    seeds += [f"{data['seed']} for the order of the rows"] if data.get("seed") is not None else []
    rows.append(["seed", "; ".join(seeds)])
    rows.append(["versions", ", ".join(f"{name} {value}" for name, value in versions.items())])
    rows.append(["date", str(fit.get("date"))])
    return [head, Table(["", ""], rows, align="ll").to_markdown()]


def _place(told: Any) -> str:
    told = mapping(told)
    if hub := told.get("hub"):
        return f"[{one_line(hub)}](https://huggingface.co/datasets/{one_line(hub).partition(':')[0]})"
    return f"{code(told['path'])}, which is not on the hub" if told.get("path") else "rows in memory"


def _limits(facts: Facts, given: Mapping[str, Any]) -> str:
    items = [*_length(facts), *_language(facts, given), *_answers(facts), *_measured(facts, given)]
    return "\n".join(f"- {item}" for item in items)


def _length(facts: Facts) -> list[str]:
    if not facts.max_length:
        return []
    windows = facts.task.auto_class == "AutoModelForQuestionAnswering" and not facts.headless
    what = (
        "a longer one is read in windows by lightning_distilbert, and cut elsewhere" if windows else "the rest is cut"
    )
    text = f"It reads {facts.max_length} tokens of a text; {what}."
    kept = facts.data.get("max_length")
    if kept and kept < facts.max_length:
        text += f" In training it saw no more than {kept}."
    return [text]


def _language(facts: Facts, given: Mapping[str, Any]) -> list[str]:
    codes = known_languages(facts, given)
    known = f"It was trained for {', '.join(map(code, codes))} and for no other language."
    items = [known if codes else "Nobody recorded the language of its training data."]
    return [*items, "It does not tell capital letters from small ones."] if facts.lower_case else items


def _answers(facts: Facts) -> list[str]:
    items = []
    thresholds = mapping(facts.details.get("thresholds"))
    if facts.headless:
        items.append("It has no head: nothing was trained that would answer, and each head put on it starts anew.")
    elif getattr(facts.task, "problem_type", "") == "single_label_classification" and "out_of_scope" not in thresholds:
        items.append("It gives one of its labels to any text, also to one that fits none of them.")
    if hasattr(facts.task, "num_labels") and facts.task.num_labels > 1 and not facts.labels and not facts.headless:
        items.append(
            f"Its {facts.task.num_labels} labels have no names: label 0 is `LABEL_0` for transformers, and so on."
        )
    items += [
        f"Its threshold {code(name)} is {value:.4g}, chosen on validation data." for name, value in thresholds.items()
    ]
    if facts.task.auto_class == "AutoModelForSeq2SeqLM" and not facts.headless:
        items.append("It may leave out or make up parts of a translation.")
    return items


def _measured(facts: Facts, given: Mapping[str, Any]) -> list[str]:
    items = []
    if facts.scores and "test" not in facts.scores:
        chosen = facts.last_fit.get("monitor")
        flatter = f", and {code(chosen)} may have chosen the checkpoint" if chosen else ""
        items.append(f"It was measured on validation data alone{flatter}: other data may give less.")
    if facts.details.get("teacher"):
        items.append("What its teacher gets wrong it was taught as well.")
    if not given.get("licence"):
        items.append("No licence is stated.")
    else_ = "Nothing else" if facts.scores else "Nothing"
    items.append(f"{else_} was measured: no other domain or language, no bias, no misleading input.")
    return items
