"""Code that runs a student: with this package, and without it."""

from __future__ import annotations

from string import Template
from textwrap import dedent

from lightning_distilbert.card.facts import Facts, mapping
from lightning_distilbert.deploy.manifest import runs_alone

TEXTS = '["A fine film.", "A dull one."]'
PAIR = ("A man plays a guitar.", "Somebody makes music.")


def with_us(facts: Facts, name: str, repo: str | None) -> str:
    """Return code that asks a student something through this package.

    Args:
        facts: What its folder says.
        name: The folder, as its neighbours call it.
        repo: Its name on the hub, if it is there.
    """
    path = f'snapshot_download("{repo}")' if repo else f'"{name}"'
    download = "from huggingface_hub import snapshot_download\n" if repo else ""
    ask = "answer" if _kind(facts) == "questions" else "predict"
    if facts.manifest:
        found = ("deploy.runtime", "load") if runs_alone(facts.manifest) else ("deploy", "load_artefact")
        return (
            f"{download}from lightning_distilbert.{found[0]} import {found[1]}\n\n"
            f"artefact = {found[1]}({path})\nprint(artefact.{ask}({_question(facts)}))\n"
        )
    if facts.headless:
        kind = facts.task_name if facts.task_name != "IntentClassification" else "TextClassification"
        options = f"num_labels={facts.task.num_labels}" if hasattr(facts.task, "num_labels") else ""
        return (
            f"{download}from lightning_distilbert import DistillationModule, Student, {kind}\n\n"
            f"student = Student(source={path})\n"
            f"module = DistillationModule({kind}({options}), student=student)  # give it to a Trainer\n"
        )
    return (
        f"{download}from lightning_distilbert import load\n\n"
        f"module = load({path})\nprint(module.{ask}({_question(facts)}))\n"
    )


def without_us(facts: Facts, name: str) -> tuple[str, str]:
    """Return the names of other packages, and code that asks a student something through them alone.

    Args:
        facts: What its folder says.
        name: Its name on the hub, or the folder as its neighbours call it.
    """
    kind = _kind(facts)
    packages = "sentence-transformers" if kind in ("retrieval", "reranking") else "transformers"
    code = dedent(CODE[kind]).lstrip()
    if getattr(facts.task, "no_answer", False) and kind == "questions":
        code = code.replace(FOUND, dedent(FOUND_OR_NOT).lstrip())
    own_writer = (facts.folder / "target_tokenizer").is_dir()
    values = {
        "name": f'"{name}"',
        "asked": _question(facts),
        "masked": f'"A {facts.mask_token} film."',
        "longest": getattr(facts.task, "max_answer_length", 30),
        "reach": getattr(facts.task, "max_answer_length", 30) - 1,
        "threshold": mapping(facts.details.get("thresholds")).get("no_answer", 0.0),
        "writer": f'AutoTokenizer.from_pretrained("{name}", subfolder="target_tokenizer")' if own_writer else "reads",
    }
    return packages, Template(code).substitute(values)


def _kind(facts: Facts) -> str:
    if facts.headless:
        return "encoder"
    if facts.task_name == "Reranking":
        return "reranking"
    kind = KINDS[facts.task.auto_class]
    if kind != "classification":
        return kind
    if getattr(facts.task, "problem_type", "") == "multi_label_classification":
        return "labels_pair" if facts.pairs else "labels"
    return "pair" if facts.pairs else kind


def _question(facts: Facts) -> str:
    kind = _kind(facts)
    if kind == "questions":
        return '"Where does Ada live?", "Ada lives in London and writes programs."'
    if kind == "mlm":
        return f'["A {facts.mask_token} film."]'
    if kind == "reranking":
        return '[("guitar music", "A man plays a guitar."), ("guitar music", "It rains.")]'
    if facts.pairs:
        return f"[{PAIR}]".replace("'", '"')
    return '["Ada lives in London."]' if kind == "tokens" else TEXTS


KINDS = {
    "AutoModelForSequenceClassification": "classification",
    "AutoModelForTokenClassification": "tokens",
    "AutoModelForQuestionAnswering": "questions",
    "AutoModelForMaskedLM": "mlm",
    "AutoModelForSeq2SeqLM": "translation",
    "AutoModel": "retrieval",
}
FOUND = "print(context[starts[start] : ends[end]])\n"
FOUND_OR_NOT = """
    none = output.start_logits[0, 0] + output.end_logits[0, 0]
    answered = none - scores[start, end] <= $threshold  # chosen on validation data
    print(context[starts[start] : ends[end]] if answered else "no answer")
"""
CODE = {
    "classification": """
        from transformers import pipeline

        classify = pipeline("text-classification", model=$name)
        print(classify($asked))
    """,
    "pair": """
        from transformers import pipeline

        classify = pipeline("text-classification", model=$name)
        print(classify([{"text": first, "text_pair": second} for first, second in $asked]))
    """,
    "labels": """
        from transformers import pipeline

        classify = pipeline("text-classification", model=$name, top_k=None)
        print(classify($asked))  # each label with its probability; those above one half are given
    """,
    "labels_pair": """
        from transformers import pipeline

        classify = pipeline("text-classification", model=$name, top_k=None)
        # each label with its probability; those above one half are given
        print(classify([{"text": first, "text_pair": second} for first, second in $asked]))
    """,
    "tokens": """
        from transformers import pipeline

        tag = pipeline("token-classification", model=$name, aggregation_strategy="first")
        print(tag($asked))
    """,
    "mlm": """
        from transformers import pipeline

        fill = pipeline("fill-mask", model=$name)
        print(fill($masked))
    """,
    "retrieval": """
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer($name)
        vectors = model.encode($asked)
        print(model.similarity(vectors, vectors))
    """,
    "reranking": """
        import torch
        from sentence_transformers import CrossEncoder

        model = CrossEncoder($name, activation_fn=torch.nn.Identity())  # scores as they are: the higher the better
        print(model.predict($asked))
    """,
    "questions": """
        import torch
        from transformers import AutoModelForQuestionAnswering, AutoTokenizer

        reads = AutoTokenizer.from_pretrained($name)
        model = AutoModelForQuestionAnswering.from_pretrained($name)
        question, context = $asked
        inputs = reads(question, context, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
        inside = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
        starts, ends = inputs.pop("offset_mapping")[0].T.tolist()
        with torch.no_grad():
            output = model(**inputs)
        scores = output.start_logits[0, :, None] + output.end_logits[0]
        spans = torch.ones_like(scores).triu().tril($reach).bool()  # of at most $longest tokens
        scores = scores.masked_fill(~(spans & inside & inside[:, None]), -torch.inf)
        start, end = divmod(scores.argmax().item(), len(scores))
        print(context[starts[start] : ends[end]])
    """,
    "translation": """
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        reads = AutoTokenizer.from_pretrained($name)
        writes = $writer
        model = AutoModelForSeq2SeqLM.from_pretrained($name)
        tokens = model.generate(**reads($asked, padding=True, return_tensors="pt"))
        print(writes.batch_decode(tokens, skip_special_tokens=True))
    """,
    "encoder": """
        from transformers import AutoModel, AutoTokenizer

        reads = AutoTokenizer.from_pretrained($name)
        model = AutoModel.from_pretrained($name)
        states = model(**reads($asked, padding=True, return_tensors="pt")).last_hidden_state
        print(states.shape)
    """,
}
