"""``lightning-distilbert predict``: answer the rows of a file with a saved student."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser, add_table_options


def main(arguments: Sequence[str]) -> None:
    """Answer the rows of a file.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    folder, source, output = options.pop("model"), options.pop("input"), options.pop("output")
    from lightning_distilbert.file_prediction import predict_file  # with torch and transformers: --help needs neither

    count = predict_file(folder, source, output, **options)
    print(f"{output}: {count} rows of {source}, answered by {folder}")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert predict",
        description="Answer the rows of a file with a saved student: each row is written with its fields and what the "
        "student says of it.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a saved student, of an artefact, or of another model of a known kind")
    add("--input", required=True, help="file of rows: .jsonl, .tsv, .csv, .parquet, or .txt with a text on each line")
    add("--output", required=True, help="file to write: .jsonl, or .npy for the vectors of a retrieval student")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    text = "column of the text, or the two columns of a pair (default: the task's, such as text, or question context)"
    add("--text", nargs="+", action="extend", help=text)
    add("--field", help="name of what is added to each row (default: prediction)")
    add_table_options(parser)
    add("--batch_size", type=int, help="texts in a batch (default: 32)")
    add("--max_length", type=int, help="tokens kept of a text at most (default: what the model allows)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)")
    add("--precision", help="bf16-mixed or 32-true (default: the fastest safe one here)")
    return parser
