"""``lightning-distilbert card``: the model card of a saved student."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser
from lightning_distilbert.errors import DistillationError


def main(arguments: Sequence[str]) -> None:
    """Write a model card.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    folder = options.pop("model")
    if "metrics" in options:
        options["metrics"] = dict(_metric(text) for text in options["metrics"])
    if "repo" in options:
        options["repo_id"] = options.pop("repo")
    from lightning_distilbert.card import write_card  # with torch and transformers: --help needs neither

    print(write_card(folder, **options))


def _metric(text: str) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        what = f"{value!r} is no number" if sign else "there is no '='"
        raise DistillationError(f"--metrics {text}: {what}. Write such as test/accuracy=0.91.") from error


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert card",
        description="Write the README.md of a saved student or an artefact: metadata for the hub, code that runs it, "
        "scores, how it was made, limits. A README.md of your own is never replaced.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a saved student, of another model of a known kind, or of an artefact")
    add("--licence", "--license", dest="licence", help="the hub's identifier of the licence, such as apache-2.0")
    add("--licence_link", help="for a licence that the hub does not know: where its text is, an address or a file")
    add("--language", nargs="+", help="ISO 639 codes of the language that it was trained for, such as en")
    add("--datasets", nargs="+", help="names on the hub of its training data (default: what the training noted)")
    add("--base_model", nargs="+", help="name on the hub of what it started as (default: what the training noted)")
    add("--metrics", nargs="+", help="further scores, such as test/accuracy=0.91")
    add("--comparison", help="file that compare wrote (default: comparison.json in the folder)")
    add("--name", help="title (default: name of the folder or repository)")
    add("--repo", help="its name on the hub, owner/name, which the code in the card then uses")
    return parser
