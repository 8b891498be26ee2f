"""The command line: ``lightning-distilbert fit --config recipes/....yaml`` and friends."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import SUPPRESS, ArgumentError, ArgumentParser, BooleanOptionalAction
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from lightning_distilbert._compat import FLAVOUR, LightningDataModule
from lightning_distilbert.errors import DistillationError, MissingExtraError
from lightning_distilbert.folder import _check_target
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.precision import auto_precision

RECIPES = Path(__file__).parent / "recipes"
LightningCLI: Any = importlib.import_module(f"{FLAVOUR}.cli").LightningCLI


# what says clearly by itself what the user has to mend
USER_ERRORS = (
    DistillationError,
    MissingExtraError,
    ArgumentError,
    FileNotFoundError,
    importlib.import_module(f"{FLAVOUR}.utilities.exceptions").MisconfigurationException,
)


class DistillationCLI(LightningCLI):
    """LightningCLI with a `DistillationModule`: every argument of module, data and Trainer is a key.

    ``precision`` left null becomes the fastest safe one for this processor. After a fit the best student (by the
    checkpoint callback's monitor; the last one without it) is saved as a transformers folder.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer methods that are commands."""
        skipped = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        evaluation = skipped - {"train_dataloaders", "val_dataloaders"}
        return {"fit": skipped, "validate": evaluation, "test": evaluation}

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add our own arguments.

        Args:
            parser: The parser of a command.
        """
        parser.add_argument(
            "--student_dir", type=str | None, default=None, help="Where to save the student; null: beside the logs."
        )

    def before_instantiate_classes(self) -> None:
        """Decide the precision where it was left open, and refuse a folder that could not be written in the end."""
        config = self.config[self.subcommand]
        if config.trainer.precision is None:
            config.trainer.precision = auto_precision()
        if self.subcommand == "fit" and config.student_dir is not None:
            check_target(config.student_dir)

    def _parse_ckpt_path(self) -> None:
        """Evaluate the model that the checkpoint describes; a fit takes its model from the command line alone."""
        if self._evaluated() is not None:
            # Lightning merges: what the recipe says of the student would be mixed with what the checkpoint says
            model = self.config[self.config.subcommand].model
            for name in vars(model):
                model[name] = None
            super()._parse_ckpt_path()

    def after_instantiate_classes(self) -> None:
        """Give the data an evaluated checkpoint's tokenizer; Lightning restores it after the data is tokenised."""
        path = self._evaluated()
        if path is not None:
            self.model.on_load_checkpoint(torch.load(path, map_location="cpu", weights_only=True))

    def _evaluated(self) -> Path | None:
        path = self.config[self.config.subcommand].ckpt_path
        return Path(path) if self.config.subcommand != "fit" and path and Path(path).is_file() else None

    def instantiate_classes(self) -> None:
        """Build everything from the arguments.

        Raises:
            DistillationError: If a class refuses its arguments; jsonargparse wraps what it says in a plain ValueError.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise DistillationError(str(error)) from error

    def after_fit(self) -> None:
        """Save the student, from the best checkpoint if one was monitored."""
        monitored = [one for one in self.trainer.checkpoint_callbacks if getattr(one, "monitor", None) is not None]
        best = monitored[0].best_model_path if monitored else ""
        if best:
            weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            self.model.load_state_dict(weights)
        root = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # every process takes part in finding it
        if self.trainer.is_global_zero:
            saved = self.model.save_student(self.config.fit.student_dir or root / "student")
            print(f"The student is in {saved}")


def check_target(path: str | Path) -> None:
    """Refuse a folder where no student can be saved, before hours of training rather than after them.

    Args:
        path: The folder to be written; a student that is there may be replaced.

    Raises:
        DistillationError: If it is a file, holds something else than a model, or may not be written.

    Example:
        >>> check_target("/tmp/new/student")
    """
    target = Path(path).expanduser().resolve()
    _check_target(target, overwrite=True)
    # the folder is written beside its place and moved there
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise DistillationError(
            f"The student cannot be saved in {str(target)!r}: {str(above)!r} is no folder that you may write to. "
            "Choose another --student_dir."
        )


def find_recipes(arguments: Sequence[str]) -> list[str]:
    """Replace ``--config recipes/NAME.yaml`` by the recipe that this package brings, unless such a file is here.

    Args:
        arguments: The command line.

    Returns:
        The command line with full paths.

    Example:
        >>> find_recipes(["fit", "--config", "mine.yaml"])
        ['fit', '--config', 'mine.yaml']
    """
    found = []
    for position, argument in enumerate(arguments):
        prefix, _, value = argument.rpartition("=")
        option = prefix or (arguments[position - 1] if position else "")
        is_config = option in ("--config", "-c")
        path = Path(value)
        recipe = RECIPES / path.name
        # another folder is the user's own, where a missing file is a mistake
        ours = path.parent in (Path("recipes"), Path()) and recipe.is_file()
        if is_config and ours and not path.exists():
            argument = f"{prefix}={recipe}" if prefix else str(recipe)
        found.append(argument)
    return found


def list_recipes(arguments: Sequence[str]) -> None:
    """Print the recipes that this package brings, each with its first line.

    Args:
        arguments: None are taken.
    """
    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"recipes/{path.name}: {first}")


def run_quickstart(arguments: Sequence[str]) -> None:
    """Run the quickstart.

    Args:
        arguments: Its options.
    """
    from lightning_distilbert.quickstart.run import main as quickstart

    quickstart(arguments)


class PlainParser(ArgumentParser):
    """A parser of which a mistake is an error like all others: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            DistillationError: In any case.
        """
        raise DistillationError(f"{message} (see {self.prog} --help)")


def run_augment(arguments: Sequence[str]) -> None:
    """Write a file of new texts made from those of another file.

    Args:
        arguments: Its options.
    """
    from lightning_distilbert.data.augmentation import augment_file, options_of

    parser = PlainParser(
        prog="lightning-distilbert augment",
        description="Vary the texts of a file word by word, into unlabelled rows for a teacher.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="file of rows: .tsv, .csv, .jsonl or .parquet")
    add("--output", required=True, help="file of the new rows: .jsonl")
    add("--text", action="append", help="column of the text; give it twice for a pair (default: text)")
    add("--label", help="column of the label (default: label)")
    add("--keep_labels", action="store_true", help="new rows have the label of their source, and not null")
    add("--with_source", action="store_true", help="write the rows of the input too, with their labels")
    add("--columns", nargs="+", help="column names, for a table without a header")
    add("--header", action=BooleanOptionalAction, help="whether a table has a header (default: without --columns)")
    add("--delimiter", help="separator of a text table (default: by the suffix)")
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
    options = vars(parser.parse_args(arguments))
    source, output = options.pop("input"), options.pop("output")
    read, written = augment_file(source, output, **options)
    print(f"{output}: {written} rows, made from {read} rows of {source}")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "augment": (run_augment, "vary the texts of a file, into unlabelled rows for a teacher"),
    "quickstart": (run_quickstart, "distil a real sentence encoder on this machine's docstrings, in minutes"),
    "recipes": (list_recipes, "list the recipes that can be given to fit --config"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of the user's is one line and exit status 2.

    Args:
        arguments: The command line without the program's name; None takes ``sys.argv``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]][0](arguments[1:])
            return
        if not arguments or arguments[0] in ("-h", "--help"):
            for name, (_, description) in COMMANDS.items():
                print(f"lightning-distilbert {name}: {description}")
        sys.argv = [sys.argv[0], *find_recipes(arguments)]  # LightningCLI warns if it is given both
        DistillationCLI(
            DistillationModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module saves plain hyper-parameters itself
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-distilbert", "exit_on_error": False},
        )
    except USER_ERRORS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
