"""The command line: ``lightning-distilbert fit --config recipes/....yaml`` and friends."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentError
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
        """Decide the precision where it was left open."""
        trainer = self.config[self.subcommand].trainer
        if trainer.precision is None:
            trainer.precision = auto_precision()

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
