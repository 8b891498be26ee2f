import io
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_distilbert.resume import ResumePoint, random_state, set_random_state


def draw() -> list[float]:
    # an odd number of normal ones, so that numpy and Python each keep one back
    return [torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)]


def fake_trainer(**changes: Any) -> Any:
    """Return as much of a Trainer as is asked, after 3 finished batches of 10, each of which had a backward."""
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([1.0, 2.0])
    counts = {"ready": 3, "processed": 3}
    progress = SimpleNamespace(current=SimpleNamespace(**counts), total=SimpleNamespace(**counts), is_last_batch=False)
    values = {
        "state": SimpleNamespace(fn="fit", status="running"),
        "world_size": 1,
        "global_rank": 0,
        "sanity_checking": False,
        "accumulate_grad_batches": 1,
        "num_training_batches": 10,
        "optimizers": [torch.optim.SGD(parameters, lr=0.1)],
        "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress), restarting=False),
    }
    return SimpleNamespace(**values | changes)


def parameters_of(trainer: Any) -> list[Any]:
    return trainer.optimizers[0].param_groups[0]["params"]


def begin_batch(trainer: Any) -> None:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.current.ready += 1
    progress.total.ready += 1


def finish_batch(trainer: Any) -> None:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.current.processed += 1
    progress.total.processed += 1


def resumed(trainer: Any, state: Any) -> None:
    point = ResumePoint()
    point.load(trainer, state)
    point.start(trainer)


def test_every_generator_comes_back_from_a_file_loaded_without_pickled_classes():
    draw()
    state = random_state()
    first = draw()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert draw() == first
    assert draw() != first


def test_a_checkpoint_at_the_end_of_a_batch_holds_the_state_of_now():
    trainer, point = fake_trainer(), ResumePoint()
    point.start(trainer)
    begin_batch(trainer)
    draw()
    finish_batch(trainer)  # not noted yet: callbacks write checkpoints before the module's own hook
    state = point.state(trainer)
    expected = draw()
    resumed(trainer, state)
    assert draw() == expected


def test_a_checkpoint_in_a_batch_holds_the_state_before_it():
    trainer, point = fake_trainer(), ResumePoint()
    point.start(trainer)
    point.note(trainer)
    begin_batch(trainer)
    expected = draw()
    state = point.state(trainer)
    resumed(trainer, state)
    assert draw() == expected


@pytest.mark.parametrize(
    ("changes", "untouched"),
    [
        ({}, True),
        ({"sanity_checking": True}, False),
        ({"state": SimpleNamespace(fn="validate", status="running")}, False),
    ],
)
def test_only_a_validation_inside_training_leaves_no_trace(changes, untouched):
    trainer, point = fake_trainer(**changes), ResumePoint()
    point.after_validation(trainer)  # before training there is nothing to go back to
    point.start(trainer)
    before = draw()
    draw()
    point.after_validation(trainer)
    assert (draw() == before) is untouched


def test_evaluation_restores_nothing():
    trainer = fake_trainer(state=SimpleNamespace(fn="test", status="running"))
    state = ResumePoint().state(trainer)
    draw()
    expected_state = torch.get_rng_state()
    resumed(trainer, state)
    resumed(fake_trainer(), None)
    assert torch.equal(torch.get_rng_state(), expected_state)
    point = ResumePoint()
    point.load(None, state)
    point.start(fake_trainer())
    assert torch.equal(torch.get_rng_state(), expected_state)


def test_gradients_are_kept_only_between_two_steps():
    assert "gradients" not in ResumePoint().state(fake_trainer())
    assert "gradients" not in ResumePoint().state(fake_trainer(accumulate_grad_batches=3))
    # the last batch of an epoch is always followed by a step
    assert "gradients" not in ResumePoint().state(fake_trainer(accumulate_grad_batches=2, num_training_batches=3))
    stream = fake_trainer(accumulate_grad_batches=2, num_training_batches=float("inf"))
    assert "gradients" in ResumePoint().state(stream)
    stream.fit_loop.epoch_loop.batch_progress.is_last_batch = True
    assert "gradients" not in ResumePoint().state(stream)
    begin_batch(stream)  # the last one, which is not finished
    assert "gradients" in ResumePoint().state(stream)
    state = ResumePoint().state(fake_trainer(accumulate_grad_batches=2))
    other = fake_trainer(accumulate_grad_batches=2)
    for parameter in parameters_of(other):
        parameter.grad = torch.ones_like(parameter)
    resumed(other, state)
    assert parameters_of(other)[0].grad.tolist() == [1.0, 2.0]
    assert parameters_of(other)[1].grad is None


def test_gradients_of_an_unfinished_backward_or_of_several_processes_are_not_kept():
    trainer, point = fake_trainer(accumulate_grad_batches=2), ResumePoint()
    begin_batch(trainer)
    assert "gradients" in point.state(trainer)
    point.begin_backward(trainer)
    with pytest.warns(UserWarning, match="between two optimizer steps in the middle of a backward: the gradients"):
        assert "gradients" not in point.state(trainer)
    several = fake_trainer(accumulate_grad_batches=2, world_size=2)
    with pytest.warns(UserWarning, match="between two optimizer steps by 2 processes"):
        assert "gradients" not in ResumePoint().state(several)


def test_another_number_of_processes_goes_on_with_a_warning():
    state = ResumePoint().state(fake_trainer())
    now = torch.get_rng_state()
    torch.rand(1)
    with pytest.warns(UserWarning, match="is one of 1 processes, and this run has 2: random states are not restored"):
        resumed(fake_trainer(world_size=2), state)
    assert not torch.equal(torch.get_rng_state(), now)


def test_each_process_gets_its_own_state_and_one_without_goes_on_with_a_warning():
    own = random_state()
    draw()
    state = {"world_size": 3, "random": {0: random_state(), 1: own}}
    draw()
    resumed(fake_trainer(world_size=3, global_rank=1), state)
    assert torch.equal(torch.get_rng_state(), own["torch"])
    with pytest.warns(UserWarning, match="written by one process after an error"):
        resumed(fake_trainer(world_size=3, global_rank=2), state)
