"""``lightning-distilbert mine``: hard negatives for the queries of a training split."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from lightning_distilbert.commands.parsing import PlainParser


def main(arguments: Sequence[str]) -> None:
    """Mine hard negatives.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    from lightning_distilbert.data.writers import check_output
    from lightning_distilbert.placing import check_writable
    from lightning_distilbert.retrieval.inputs import open_split
    from lightning_distilbert.retrieval.mining import mine_negatives
    from lightning_distilbert.retrieval.scoring import PairScorer

    source, ranker, output = (options.pop(name) for name in ("input", "model", "output"))
    # before anything is read or loaded
    check_writable(check_output(output, options.get("overwrite", False), source=source), "The negatives", "--output")
    split = open_split(source, options.pop("split", "train"), **columns(options))
    if options.get("precision") == "auto":
        options["precision"] = None
    scorer = None
    if cross_encoder := options.pop("cross_encoder", None):
        shared = {name: options[name] for name in ("max_length", "precision", "device") if name in options}
        scorer = PairScorer(cross_encoder, **shared)
    mined = mine_negatives(split, ranker, Path(output), scorer=scorer, **options)
    print(f"{output}: {mined.rows} rows with {mined.negatives} negatives")


def columns(options: dict[str, str]) -> dict[str, str]:
    """Take the names of the columns out of the options."""
    return {name: options.pop(name) for name in ("query", "document") if name in options}


def add_search_options(parser: ArgumentParser) -> None:
    """Add the options of a search in a corpus.

    Args:
        parser: The parser of a command with ``--input``.
    """
    add = parser.add_argument
    add("--model", required=True, help="what searches: folder of a sentence encoder, or bm25")
    add("--query", help="column of the query, for pairs (default: query)")
    add("--document", help="column of the document, for pairs (default: document)")
    add("--similarity", help="cosine or dot (default: the encoder's own)")
    add("--max_length", type=int, help="tokens kept of a text at most (default: what the model allows)")
    add("--precision", help="32-true, bf16-mixed, or auto for the fastest safe one here (default: 32-true)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)")
    add("--vectors", help="file for the corpus' vectors, .npy: they survive an interruption, and are used again")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert mine",
        description="Find documents that a model, or BM25, ranks high for a query and that do not answer it. The lines "
        "that are written can be trained on: negatives, and the cross-encoder's scores if there is one.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="BEIR folder, or file of pairs in columns query and document")
    add("--output", required=True, help="file to write: .jsonl")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    add("--split", help="split of a folder: train, dev or test (default: train)")
    add_search_options(parser)
    add("--num_negatives", type=int, help="negatives of each row, at most (default: 5)")
    add("--depth", type=int, help="documents looked at for each query (default: 100)")
    add("--skip", type=int, help="of these, passed over at the top: maybe answers that nobody judged (default: 0)")
    add("--margin", type=float, help="a negative scores so much less than the document, at least (default: no limit)")
    share = "as margin, in shares of the document's score: 0.05 keeps what has at most 95 %% of it"
    add("--relative_margin", type=float, help=share)
    add("--pick", help="top: the highest ranked of what is left; random: any of it (default: top)")
    add("--seed", type=int, help="of the random ones (default: 0)")
    add("--cross_encoder", help="folder of a reranking model whose scores are written, and meet the margin")
    return parser
