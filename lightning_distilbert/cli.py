"""The command line: ``lightning-distilbert fit --config recipes/....yaml`` and friends."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_distilbert._compat import FLAVOUR, LightningDataModule
from lightning_distilbert.errors import DistillationError, MissingExtraError
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.precision import auto_precision

RECIPES = Path(__file__).parent / "recipes"
LightningCLI: Any = importlib.import_module(f"{FLAVOUR}.cli").LightningCLI


class DistillationCLI(LightningCLI):  # type: ignore[misc]
    """LightningCLI with a `DistillationModule`: every argument of module, data and Trainer is a key.

    ``precision`` left null becomes the fastest safe one for this processor. After a fit the best student (by the
    checkpoint callback's monitor; the last one without it) is saved as a transformers folder.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer methods that are commands."""
        skipped = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": skipped, "validate": skipped - {"train_dataloaders", "val_dataloaders"}, "test": skipped - {"train_dataloaders", "val_dataloaders"}}

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add our own arguments.

        Args:
            parser: The parser of a command.
        """
        parser.add_argument(
            "--student_dir", type=str | None, default=None, help="Where to save the student; null: beside the logs."
        )

    def before_instantiate_classes(self) -> None:
        """Decide the precision where it was left open."""
        trainer = self.config[self.subcommand].trainer
        if trainer.precision is None:
            trainer.precision = auto_precision()

    def after_fit(self) -> None:
        """Save the student, from the best checkpoint if one was monitored."""
        checkpoints = self.trainer.checkpoint_callback
        best = getattr(checkpoints, "best_model_path", "")
        if best and checkpoints.monitor is not None:
            weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            self.model.load_state_dict(weights)
        if self.trainer.is_global_zero:
            root = Path(self.trainer.log_dir or self.trainer.default_root_dir)
            saved = self.model.save_student(self.config.fit.student_dir or root / "student")
            print(f"The student is in {saved}")  # noqa: T201


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
        is_config = prefix in ("--config", "-c") or (not prefix and position and arguments[position - 1] in ("--config", "-c"))
        recipe = RECIPES / Path(value).name
        if is_config and not Path(value).exists() and recipe.is_file():
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
        print(f"recipes/{path.name}: {first}")  # noqa: T201


def run_quickstart(arguments: Sequence[str]) -> None:
    """Run the quickstart.

    Args:
        arguments: Its options.
    """
    from lightning_distilbert.quickstart.run import main as quickstart

    quickstart(arguments)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
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
                print(f"lightning-distilbert {name}: {description}")  # noqa: T201
        sys.argv = [sys.argv[0], *find_recipes(arguments)]  # LightningCLI warns if it is given both
        DistillationCLI(
            DistillationModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module saves plain hyper-parameters itself
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-distilbert"},
        )
    except (DistillationError, MissingExtraError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
