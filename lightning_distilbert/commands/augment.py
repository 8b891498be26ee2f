"""``lightning-distilbert augment``: more text for a teacher to label."""

from __future__ import annotations

from argparse import SUPPRESS, BooleanOptionalAction
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser, add_table_options
from lightning_distilbert.data.augmentation import augment_file, options_of


def main(arguments: Sequence[str]) -> None:
    """Write a file of new texts made from those of another file.

    Args:
        arguments: Its options.
    """
    options = vars(_parser().parse_args(arguments))
    source, output = options.pop("input"), options.pop("output")
    read, written = augment_file(source, output, **options)
    print(f"{output}: {written} rows, made from {read} rows of {source}")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert augment",
        description="Vary the texts of a file word by word, into unlabelled rows for a teacher.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="file of rows: .tsv, .csv, .jsonl or .parquet")
    add("--output", required=True, help="file of the new rows: .jsonl")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    add("--text", action="append", help="column of the text; give it twice for a pair (default: text)")
    add("--label", help="column of the label (default: label)")
    add("--keep_labels", action="store_true", help="new rows have the label of their source, and not null")
    add("--with_source", action="store_true", help="write the rows of the input too, with their labels")
    add_table_options(parser)
    add("--method", help="mlm: words that a model expects; words: those of the input itself, no model (default: mlm)")
    add("--model", help="folder or hub name of a masked language model, for mlm")
    add("--operations", nargs="+", help="what words does: any of replace delete swap (default: all)")
    add("--beside", action=BooleanOptionalAction, help="mlm: show the model the text beside the masked one (default)")
    add("--precision", help="mlm: bf16-mixed or 32-true (default: the fastest safe one here)")
    described = {
        "n": "variants drawn of each text",
        "p": "probability that a word changes",
        "k": "mlm: candidates for each word",
        "seed": "of the draws",
        "batch_size": "mlm: masked texts in one call of the model",
        "max_length": "mlm: tokens that the model sees at most",
    }
    for name, default in options_of("mlm").items():
        if name in described:
            add(f"--{name}", type=type(default), help=f"{described[name]} (default: {default})")
    return parser
