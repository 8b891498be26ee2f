"""``lightning-distilbert push``: a saved student or an artefact onto the hub."""

from __future__ import annotations

from argparse import SUPPRESS, BooleanOptionalAction
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser


def main(arguments: Sequence[str]) -> None:
    """Push a folder, and print the address of the commit.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    folder, repo = options.pop("model"), options.pop("repo")
    from lightning_distilbert.hub import push_to_hub  # with torch and transformers: --help needs neither

    print(push_to_hub(folder, repo, **options))


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert push",
        description="Send a saved student or an artefact to the hub, with its model card, after a look at whether it "
        "is whole. The token is that of `hf auth login` or of the environment's HF_TOKEN.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a saved student, or of an artefact that export wrote")
    add("--repo", required=True, help="owner/name on the hub; it is made where it is missing")
    add("--private", action=BooleanOptionalAction, help="whether a repository that is made is private")
    add("--revision", help="branch, which is made where it is missing (default: main)")
    add("--message", help="first line of the commit")
    add("--endpoint", help="address of another hub (default: HF_ENDPOINT, or https://huggingface.co)")
    return parser
