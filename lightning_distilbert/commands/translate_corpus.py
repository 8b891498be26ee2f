"""``lightning-distilbert translate-corpus``: a teacher's translations as training data."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser


def main(arguments: Sequence[str]) -> None:
    """Translate a corpus.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    folder, source, output = options.pop("model"), options.pop("input"), options.pop("output")
    from lightning_distilbert.corpus_translation import translate_corpus  # --help needs neither torch nor transformers

    count = translate_corpus(folder, source, output, **options)
    print(f"{output}: {count} texts of {source}, translated by {folder}")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert translate-corpus",
        description="Translate a corpus with a teacher, into rows of source and target on which a student is trained "
        "(sequence-level distillation). An interrupted run goes on where it was.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a saved student of Translation, or of a Marian model")
    add("--input", required=True, help="the texts: a file of lines (also .gz, .zst), or rows (.jsonl, .tsv, .csv)")
    add("--output", required=True, help="file to write: .jsonl")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    add("--text", help="column of the text, in a file of rows (default: source)")
    add("--num_beams", type=int, help="translations that the search holds at a time (default: the model's task's)")
    add("--length_penalty", type=float, help="above 0 favours longer translations (default: the task's)")
    add("--target_length", type=int, help="tokens of a translation at most (default: the task's)")
    add("--batch_size", type=int, help="texts in a batch (default: 32)")
    add("--max_length", type=int, help="tokens kept of a text at most (default: what the model allows)")
    add("--rows", type=int, help="texts that are sorted and written together (default: 1024)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)")
    add("--precision", help="bf16-mixed or 32-true (default: the fastest safe one here)")
    return parser
