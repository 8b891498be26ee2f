"""``lightning-distilbert evaluate-retrieval``: nDCG, MRR and recall of a sentence encoder, or of BM25."""

from __future__ import annotations

import json
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_distilbert.commands.mine import add_search_options, columns
from lightning_distilbert.commands.parsing import PlainParser


def main(arguments: Sequence[str]) -> None:
    """Search a corpus and print the scores with their intervals.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    from lightning_distilbert.data.writers import check_output, complete
    from lightning_distilbert.errors import DistillationError
    from lightning_distilbert.placing import check_writable
    from lightning_distilbert.report.table import Table
    from lightning_distilbert.retrieval.evaluate import check_fields, evaluate_retrieval
    from lightning_distilbert.retrieval.inputs import open_split

    source, ranker, run = options.pop("input"), options.pop("model"), options.pop("run", None)
    name, overwrite = options.pop("output", None), options.pop("overwrite", False)
    output = None if name is None else check_output(name, overwrite, (".json",), source)
    run = None if run is None else check_output(run, overwrite, (Path(run).suffix.lower(),), source)  # of any suffix
    if output is not None and run is not None and output.resolve() == run.resolve():
        raise DistillationError(f"--output and --run are one file, {str(run)!r}: name two.")
    for path in (output, run):
        if path is not None:
            check_writable(path, "The scores", "--output or --run")
    if options.get("precision") == "auto":
        options["precision"] = None
    split = open_split(source, options.pop("split", "test"), **columns(options))
    tag = "-".join(Path(ranker).absolute().name.split()) or "lightning-distilbert"
    if run is not None:
        check_fields((*split.query_ids, *split.document_ids))
    results = evaluate_retrieval(split, ranker, **options)
    if run is not None:
        results.write_run(run, tag=tag)
    intervals = results.intervals()
    if output is not None:
        report: dict[str, Any] = {
            "queries": len(split.queries),
            "documents": len(split.documents),
            "scores": {name: interval._asdict() for name, interval in intervals.items()},
            "per_query": {
                name: dict(zip(results.query_ids, values.tolist(), strict=True))
                for name, values in results.per_query.items()
            },
        }
        with complete(output) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [[name, *(f"{value:.4f}" for value in interval)] for name, interval in intervals.items()]
    print(f"{len(split.queries)} queries, {len(split.documents)} documents")
    print(Table(["metric", "value", "95 % from", "to"], rows).to_text())


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert evaluate-retrieval",
        description="Search a corpus for each query, exactly, and score what is found as trec_eval does.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="BEIR folder, or file of pairs in columns query and document")
    add("--split", help="split of a folder: train, dev or test (default: test)")
    add("--output", help="file to write the scores to, in total and of each query: .json")
    add("--overwrite", action="store_true", help="replace the output and the ranking if they are there")
    add("--run", help="file to write the ranking to, as trec_eval reads it")
    add_search_options(parser)
    for name, default in {"ndcg": 10, "mrr": 10, "recall": 100}.items():
        add(f"--{name}_at", type=int, help=f"the rank at which it is cut (default: {default})")
    add("--ignore_identical_ids", action="store_true", help="pass over documents that have the id of their query")
    return parser
