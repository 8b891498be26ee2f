import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from lightning_distilbert.data.batching import LengthGroupedSampler
from lightning_distilbert.data.resume import ResumableLoader

ROWS = 22


class Numbers(Dataset):
    """Rows that are their own numbers, and that remember which of them were read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return torch.tensor(index)


def loader(trainer=None, rows=ROWS, batch_size=4, seed=0, **options):
    sampler = LengthGroupedSampler(range(1, rows + 1), batch_size, seed=seed, num_replicas=1, rank=0)
    return ResumableLoader(Numbers(), sampler, trainer, **options)


def fit(ready=0, processed=0, batches=6):
    current = SimpleNamespace(ready=ready, processed=processed)
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
    return SimpleNamespace(state=SimpleNamespace(fn="fit"), fit_loop=loops, num_training_batches=batches)


def epochs(one, count, first=0):
    """Return the batches of some epochs as Lightning asks for them."""
    found = []
    for epoch in range(first, first + count):
        one.sampler.set_epoch(epoch)
        found.append([batch.tolist() for batch in one])
    return found


def take(one, count):
    iterator = iter(one)
    return [next(iterator).tolist() for _ in range(count)]


@pytest.mark.parametrize("done", range(7))
def test_the_rest_of_the_epoch_and_then_the_next_ones(done):
    first, second, third = epochs(loader(), 3)
    assert first != second
    half = loader()
    take(half, done)
    rest = loader()
    rest.load_state_dict(half.state_dict())
    found = epochs(rest, 2)
    assert found == ([first[done:], second] if done < 6 else [second, third])


def test_rows_of_finished_batches_are_not_read():
    rest = loader()
    rest.load_state_dict({"epoch": 0, "batches": 4, "data": rest.sampler.signature()})
    batches = [batch.tolist() for batch in rest]
    assert rest.dataset.read == batches
    assert len(batches) == 2
    assert len(rest) == 6  # of which Lightning knows by itself how many are left


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_that_read_ahead_do_not_count():
    (whole,) = epochs(loader(), 1)
    half = loader(num_workers=2)
    take(half, 2)
    rest = loader(num_workers=2)
    rest.load_state_dict(half.state_dict())
    assert [batch.tolist() for batch in rest] == whole[2:]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_begin_with_the_epoch_that_is_set_after_the_iterator_is_asked_for():
    expected = epochs(loader(), 1, first=3)[0]
    late = loader(num_workers=2)
    iterator = iter(late)
    late.sampler.set_epoch(3)
    assert [batch.tolist() for batch in iterator] == expected


def test_a_batch_handed_out_and_not_finished_comes_again():
    (whole,) = epochs(loader(), 1)
    trainer = fit()
    half = loader(trainer)
    iterator = iter(half)
    for _ in range(3):
        next(iterator)
    trainer.fit_loop.epoch_loop.batch_progress.current = SimpleNamespace(ready=3, processed=2)
    assert half.state_dict()["batches"] == 2
    rest = loader()
    rest.load_state_dict(half.state_dict())
    assert take(rest, 1) == whole[2:3]
    trainer.state.fn = "validate"  # then nobody counts
    assert half.state_dict()["batches"] == 3


@pytest.mark.parametrize(("processed", "place"), [(3, (0, 3)), (4, (1, 0))])
def test_an_epoch_that_the_trainer_shortens_is_over_when_it_says_so(processed, place):
    trainer = fit(batches=4)
    half = loader(trainer)
    take(half, 4)
    trainer.fit_loop.epoch_loop.batch_progress.current.processed = processed
    assert tuple(half.state_dict()[name] for name in ("epoch", "batches")) == place


def test_lightnings_count_of_epochs_may_be_ahead_after_resuming():
    # it takes an epoch cut short by max_steps for a whole one
    expected = epochs(loader(), 3)
    half = loader()
    take(half, 2)
    rest = loader()
    rest.load_state_dict(half.state_dict())
    assert epochs(rest, 3, first=1) == [expected[0][2:], *expected[1:]]
    # and the state after that is of our own count
    assert rest.state_dict()["epoch"] == 3


def test_a_state_not_yet_used_is_handed_on():
    rest = loader()
    state = {"epoch": 4, "batches": 2, "data": rest.sampler.signature()}
    rest.load_state_dict(state)
    assert rest.state_dict() == state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "others now: batch_size was 4 and is 3. The epoch starts"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"rows": 24}, r"rows was 22 and is 24, checksum of lengths was \d+ and is \d+"),
    ],
)
def test_other_data_start_the_epoch_anew_with_a_warning(changes, message):
    half = loader()
    take(half, 2)
    rest = loader(**changes)
    with pytest.warns(UserWarning, match=message):
        rest.load_state_dict(half.state_dict())
    assert epochs(rest, 1) == epochs(loader(**changes), 1)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader())
    assert torch.equal(torch.get_rng_state(), state)
