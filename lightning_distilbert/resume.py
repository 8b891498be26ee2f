"""What a checkpoint lacks so that training resumes bit for bit: random states, and gradients between two steps."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_warn


def random_state() -> dict[str, Any]:
    """Return the state of every random generator of this process, as tensors and plain values.

    These are torch's on the processor and, once CUDA is in use, on each of its devices, numpy's and Python's.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(2), np.random.rand(), random.random()
        >>> set_random_state(state)
        >>> second = torch.rand(2), np.random.rand(), random.random()
        >>> torch.equal(first[0], second[0]), first[1:] == second[1:]
        (True, True)
    """
    version, numbers, gauss = random.getstate()
    old = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": {
            # a checkpoint is loaded without pickled classes, and numpy's arrays are such
            "key": torch.from_numpy(old["state"]["key"].astype(np.int64)),
            "pos": int(old["state"]["pos"]),
            "has_gauss": int(old["has_gauss"]),
            "gauss": float(old["gauss"]),
        },
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every random generator of this process back.

    Args:
        state: What `random_state` returned; states of CUDA devices that are not here are left out.
    """
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    old = state["numpy"]
    key = old["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, old["pos"], old["has_gauss"], old["gauss"]))
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state.cpu(), device)


class ResumePoint:
    """The place from which training goes on after the last finished batch.

    Lightning's checkpoint holds weights, optimizer and progress, and no random states: after resuming, dropout would
    draw other numbers. This keeps the states of each process as they were after its last finished batch, so that an
    error in the middle of the next one changes nothing, and gives them back when training starts again. Validation
    inside a fit leaves the states of training untouched, since a resumed run may have one validation more or less.

    A checkpoint written between two optimizer steps (``accumulate_grad_batches``) also gets the gradients gathered so
    far. That is for one process; with several they are lost, with a warning.
    """

    def __init__(self) -> None:
        self._random: dict[str, Any] | None = None
        self._batches = -1  # finished when the states were noted
        self._backward = -1  # the last batch whose backward began
        self._loaded: Mapping[str, Any] | None = None

    def start(self, trainer: Any) -> None:
        """Give back what a checkpoint held. To be called at ``on_train_start``, after Lightning restored its own.

        Args:
            trainer: The Trainer.
        """
        _place_loaders(trainer.fit_loop)
        _end_epoch(trainer.fit_loop)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._restore(trainer, loaded)
        self.note(trainer)

    def note(self, trainer: Any) -> None:
        """Note the random states after a batch. To be called at ``on_train_batch_end``.

        Args:
            trainer: The Trainer.
        """
        self._random, self._batches = random_state(), _total(trainer).processed

    def begin_backward(self, trainer: Any) -> None:
        """Note that from here on gradients hold a part of an unfinished batch.

        Args:
            trainer: The Trainer.
        """
        self._backward = _total(trainer).ready

    def after_validation(self, trainer: Any) -> None:
        """Put the random states back to what they were before a validation inside a fit.

        Args:
            trainer: The Trainer.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._random is not None:
            set_random_state(self._random)

    def state(self, trainer: Any) -> dict[str, Any]:
        """Return what a checkpoint has to hold. All processes have to call it, unless the run was interrupted.

        Args:
            trainer: The Trainer.

        Returns:
            ``random``, by rank; ``world_size``; and ``gradients`` in the order of the optimizers' parameters, in the
            middle of an accumulation.
        """
        noted = self._random is not None and self._batches == _total(trainer).processed
        # a checkpoint at the end of a batch may come before that batch is noted
        own = self._random if noted else random_state()
        state: dict[str, Any] = {"world_size": trainer.world_size, "random": {trainer.global_rank: own}}
        # after an error one process may be alone here, and the others would never answer
        if trainer.world_size > 1 and dist.is_initialized() and trainer.state.status != "interrupted":
            gathered: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(gathered, own)
            state["random"] = dict(enumerate(gathered))
        gradients = self._gradients(trainer)
        if gradients is not None:
            state["gradients"] = gradients
        return state

    def load(self, trainer: Any, state: Mapping[str, Any] | None) -> None:
        """Keep what a checkpoint holds until training starts; evaluation needs none of it.

        Args:
            trainer: The Trainer, or None outside of one.
            state: What `state` returned; None for a checkpoint without it.
        """
        fitting = trainer is not None and trainer.state.fn == "fit"
        self._loaded = state if fitting else None

    def _restore(self, trainer: Any, state: Mapping[str, Any]) -> None:
        if state["world_size"] != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint is one of {state['world_size']} processes, and this run has {trainer.world_size}: "
                "random states are not restored, and training does not go on bit for bit."
            )
            return
        own = state["random"].get(trainer.global_rank)
        if own is None:
            rank_zero_warn(
                "The checkpoint was written by one process after an error, and holds the random states of that one "
                "alone: the other processes go on with new ones."
            )
        else:
            set_random_state(own)
        for parameter, gradient in zip(_parameters(trainer), state.get("gradients", []), strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)

    def _gradients(self, trainer: Any) -> list[torch.Tensor | None] | None:
        progress, total = trainer.fit_loop.epoch_loop.batch_progress, _total(trainer)
        current = progress.current
        between = current.processed % trainer.accumulate_grad_batches != 0
        # of a stream only Lightning's mark tells the last batch, which is always followed by a step
        last = current.processed >= trainer.num_training_batches or progress.is_last_batch
        if not between or (last and current.processed == current.ready):
            return None
        mixed = total.ready > total.processed and self._backward == total.ready
        if trainer.world_size > 1 or mixed:
            reason = "in the middle of a backward" if mixed else f"by {trainer.world_size} processes"
            rank_zero_warn(
                f"A checkpoint is written between two optimizer steps {reason}: the gradients accumulated since the "
                "last step are not in it, and resuming from it is not bit for bit."
            )
            return None
        gradients = [parameter.grad for parameter in _parameters(trainer)]
        return [None if gradient is None else gradient.detach().cpu() for gradient in gradients]


def _place_loaders(fit_loop: Any) -> None:
    """Give the training loaders the states that Lightning forgot to give them.

    It does so when it makes the loaders. A module that asks for ``trainer.estimated_stepping_batches`` in
    ``configure_optimizers``, as ours does, has them made before the checkpoint's loops are read, and not again.
    """
    if getattr(fit_loop, "_combined_loader_states_to_load", None) and fit_loop.restarting:
        fit_loop._load_combined_loader_states()
        iter(fit_loop._data_fetcher)  # the iterators that it holds began before


def _end_epoch(fit_loop: Any) -> None:
    """Begin the next epoch where the checkpoint was written at the end of one.

    Lightning would go on with the old epoch in two cases. With a limit in steps, and without validation data, it would
    take one batch from the next epoch and drop the others. After the last batch of a stream, whose length it does not
    know, it would count on, so that `accumulate_grad_batches` ends at other batches.
    """
    loop = fit_loop.epoch_loop
    if getattr(fit_loop, "restarted_on_epoch_end", False):
        fit_loop.epoch_progress.increment_completed()
    elif (
        getattr(loop, "restarted_on_train_batch_end", False)
        and loop.batch_progress.is_last_batch
        and fit_loop.max_batches == float("inf")
    ):
        # the loop's own `reset` does this where it knows the length
        loop.batch_progress.increment_completed()
        loop._batches_that_stepped += 1
        loop.reset_restart_stage()
    else:
        return
    fit_loop.reset_restart_stage()
    loop.restarting = False


def _total(trainer: Any) -> Any:
    """Return Lightning's counts of batches over all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total


def _parameters(trainer: Any) -> list[torch.nn.Parameter]:
    # in the order that the optimizers' own states rely on
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return [parameter for group in groups for parameter in group["params"]]
