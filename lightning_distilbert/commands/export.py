"""``lightning-distilbert export``: an artefact of a saved student for devices, verified."""

from __future__ import annotations

from argparse import SUPPRESS, BooleanOptionalAction
from collections.abc import Sequence

from lightning_distilbert.commands.parsing import PlainParser, add_evaluation_options, pop_reading


def main(arguments: Sequence[str]) -> None:
    """Export a student, and print what was measured.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    folder, target = options.pop("model"), options.pop("output")
    for name, argument in (("evaluate", "evaluation"), ("calibrate", "calibration")):
        if name in options:
            options[argument] = options.pop(name)
    reading = pop_reading(options)
    from lightning_distilbert.deploy.export import export  # with torch and transformers: --help needs neither

    done = export(folder, target, reading=reading, **options)
    found = done.manifest["verification"]
    print(f"{done.folder}: {done.manifest['format']}, {done.size / 1e6:.1f} MB, {done.manifest['task']}")
    print(
        f"outputs differ from the student's by {found['mean_difference']:.2g} in the mean and by up to "
        f"{found['max_difference']:.2g} (they spread by {found['output_spread']:.2g}; {found['rows']} rows)"
    )
    if left := (done.manifest["quantization"] or {}).get("left_in_float"):
        print(f"left in float, as the gate asked for it: {', '.join(left)}")
    if score := found.get("evaluation"):
        metric, own = score["metric"], score["artefact"].get(score["metric"])
        print(
            f"{metric} on {score['source']} ({score['split']}): student {score['student'][metric]:.4f}, artefact "
            f"{'none' if own is None else f'{own:.4f}'}, kept {score['retention']:.2%}"
        )
    else:
        print("the task's score was not measured: give rows with labels, --evaluate FILE")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert export",
        description="Write a saved student as a model for devices, with tokenizer, labels and a manifest, and measure "
        "what it keeps of the student's score. Below --min_retention nothing is written, or the float model alone.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a saved student, or of another model of a known kind")
    formats = "onnx, onnx-int8, openvino, openvino-int8, executorch, torch-export, keras or litert (default: onnx)"
    add("--format", help=formats)
    add("--output", required=True, help="folder to write")
    add("--overwrite", action="store_true", help="replace the artefact if there is one")
    add("--min_retention", type=float, help="share of the student's score that has to be kept (default: 0.99)")
    add("--calibrate", help="rows without labels, for static int8: training texts; 256 of them are used")
    add("--static", action="store_true", help="onnx-int8: ranges of activations from --calibrate, not at run time")
    reduce = "onnx-int8: weights of 7 bits, or of 8 (default: 7 where this processor has no VNNI)"
    add("--reduce_range", action=BooleanOptionalAction, help=reduce)
    add("--opset", type=int, help="version of ONNX's operators (default: 20)")
    add_evaluation_options(parser)
    return parser
