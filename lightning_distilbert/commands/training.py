"""``lightning-distilbert fit``, ``validate`` and ``test``: Lightning's command line with a `DistillationModule`."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_distilbert import data, evaluation
from lightning_distilbert._compat import FLAVOUR, CallbackBase, LightningDataModule
from lightning_distilbert.checkpoints import check_content, check_file
from lightning_distilbert.commands.mistakes import check_config, explain, nulls
from lightning_distilbert.errors import DistillationError, nearest
from lightning_distilbert.folder import _check_target
from lightning_distilbert.module import CHECKPOINT_KEY, DistillationModule
from lightning_distilbert.placing import check_writable
from lightning_distilbert.precision import auto_precision

LightningCLI: Any = importlib.import_module(f"{FLAVOUR}.cli").LightningCLI


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
        check_config(config)
        if config.trainer.precision is None:
            config.trainer.precision = auto_precision()
        if self.subcommand == "fit" and config.student_dir is not None:
            check_target(config.student_dir)

    def _parse_ckpt_path(self) -> None:
        """Evaluate the model that the checkpoint describes; a fit takes its model from the command line alone."""
        path = self.config[self.config.subcommand].ckpt_path
        if path not in (None, "best", "last", "hpc"):
            check_file(path)
        if path == "best" and self.config.subcommand != "fit":
            raise DistillationError(
                f"--ckpt_path best is that of a fit in the same run, and {self.config.subcommand} is none. Name the "
                "file, such as runs/lightning_logs/version_0/checkpoints/best.ckpt."
            )
        if self._evaluated() is not None:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            check_content(checkpoint, path)
            if not checkpoint.get("hyper_parameters"):
                raise DistillationError(f"{path!r} is a checkpoint of another module: it does not say what to build.")
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
            cause: BaseException = error
            while not isinstance(cause, DistillationError) and (inner := cause.__cause__ or cause.__context__):
                cause = inner
            raise DistillationError(str(cause if isinstance(cause, DistillationError) else error)) from error

    def before_fit(self) -> None:
        """Look early whether there is the metric that tells the best checkpoint."""
        self.trainer.callbacks.append(EarlyLook())

    def after_fit(self) -> None:
        """Save the student, from the best checkpoint if one was monitored."""
        monitored = [one for one in self.trainer.checkpoint_callbacks if getattr(one, "monitor", None) is not None]
        best = monitored[0].best_model_path if monitored else ""
        if best:
            checkpoint = torch.load(best, map_location="cpu", weights_only=True)
            self.model.load_state_dict(checkpoint["state_dict"])
            evaluation.restore(self.model, checkpoint.get(CHECKPOINT_KEY, {}))  # found with these weights
        root = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # every process takes part in finding it
        if self.trainer.is_global_zero:
            saved = self.model.save_student(self.config.fit.student_dir or root / "student")
            print(f"The student is in {saved}")


class EarlyLook(CallbackBase):
    """Tells of a wrong ``monitor`` before training; Lightning complains of it after the first epoch."""

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare with what the check before training has logged.

        Args:
            trainer: The Trainer.
            pl_module: The module.

        Raises:
            DistillationError: If a metric is watched that a `DistillationModule` does not compute. (Another module may
                log what this check did not: for it there is a warning.)
        """
        logged = [name for name in trainer.callback_metrics if name.startswith("val/")]
        watched = {getattr(callback, "monitor", None): type(callback).__name__ for callback in trainer.callbacks}
        for name, owner in watched.items():
            if logged and name is not None and name.startswith("val/") and name not in logged:
                told = f"{owner} watches {name!r}, and the check before training logged only {logged}."
                told += nearest(name, logged)
                if type(pl_module) is DistillationModule:
                    raise DistillationError(
                        f"{told} {type(pl_module.task).__name__} is best told by "
                        f"--trainer.callbacks.monitor {pl_module.task.monitor} --trainer.callbacks.mode "
                        f"{pl_module.task.mode}."
                    )
                rank_zero_warn(f"{told} If it is not there after the first epoch, training stops.")


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
    check_writable(target, "The student", "--student_dir")  # it is written beside its place and moved there


def main(arguments: Sequence[str]) -> None:
    """Run one of Lightning's commands.

    Args:
        arguments: The command line, from the command on.
    """
    for name in data.__all__:  # a class is found by its name alone once it is imported
        getattr(data, name)
    sys.argv = [sys.argv[0], *nulls(arguments)]  # LightningCLI warns if it is given both
    try:
        DistillationCLI(
            DistillationModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module saves plain hyper-parameters itself
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-distilbert", "exit_on_error": False},
        )
    except ArgumentError as error:
        raise DistillationError(explain(str(error))) from error
