"""What would go wrong silently is said before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig

from lightning_distilbert import doctor
from lightning_distilbert.errors import DistillationError


def vocabulary(*tokens):
    return SimpleNamespace(get_vocab=lambda: {token: index for index, token in enumerate(tokens)})


def test_one_vocabulary_passes_and_any_difference_is_reported_with_an_example():
    doctor.check_vocabularies(vocabulary("a", "b"), vocabulary("a", "b"))
    with pytest.raises(
        DistillationError, match=r"2 tokens have another id and 0 are in one only, such as 'a' \(0 against 1\)"
    ):
        doctor.check_vocabularies(vocabulary("a", "b"), vocabulary("b", "a"))
    with pytest.raises(
        DistillationError, match=r"0 tokens have another id and 1 are in one only, such as 'c' \(None against 2\)"
    ):
        doctor.check_vocabularies(vocabulary("a", "b"), vocabulary("a", "b", "c"))
    with pytest.raises(DistillationError, match="not the one of roberta"):
        doctor.check_vocabularies(vocabulary("a"), vocabulary("b"), "roberta")


def test_vocabulary_sizes_are_compared_where_both_are_known():
    small, large = SimpleNamespace(vocab_size=10), SimpleNamespace(vocab_size=20)
    for pair in ((small, small), (small, None), (None, large), (SimpleNamespace(), large)):
        doctor.check_vocabulary_sizes(*pair)
    with pytest.raises(DistillationError, match="10 tokens and the teacher one of 20"):
        doctor.check_vocabulary_sizes(small, large)


def test_label_names_come_in_the_order_of_their_numbers():
    assert doctor.label_names(SimpleNamespace(id2label={"10": "k", "2": "c", "0": "a"})) == ["a", "c", "k"]
    assert doctor.label_names(BertConfig(num_labels=3)) is None
    assert doctor.label_names(None) is None
    assert doctor.label_names(BertConfig(id2label={0: "LABEL_0", 1: "good"})) == ["LABEL_0", "good"]


def test_labels_in_another_order_are_paired_by_name_and_other_names_refused():
    for ours, theirs in ((["No", "Yes"], ["no", "yes"]), (None, ["no", "yes"]), (["no", "yes"], None), ([], ["a"])):
        assert doctor.check_labels(ours, theirs) is None
    assert doctor.check_labels(["no", "yes"], ["yes", "no"]) == [1, 0]
    assert doctor.check_labels(["A", "b", "C"], ["c", "a", "B"]) == [1, 2, 0]
    assert doctor.check_labels(["it", "IT", "a"], ["IT", "a", "it"]) == [2, 0, 1]  # case counts where it has to
    for ours, theirs in ((["it", "IT"], ["IT", "It"]), (["a", "a", "b"], ["a", "b", "a"]), (["a", "b"], ["a", "a"])):
        with pytest.raises(DistillationError, match="Use the teacher's names"):  # of which nobody knows which is meant
            doctor.check_labels(ours, theirs)
    with pytest.raises(
        DistillationError, match=r"are \['no', 'yes'\], those of the teacher are \['a', 'b', 'c'\]\. Use"
    ):
        doctor.check_labels(["no", "yes"], ["a", "b", "c"])


def test_optimizers_must_hold_the_projections_and_not_the_teacher():
    student, projection, teacher = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 2)

    def sgd(*modules):
        return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)

    doctor.check_optimizers(projection.parameters(), [sgd(student, projection)], teacher)
    doctor.check_optimizers(projection.parameters(), [sgd(student), sgd(projection)], teacher)
    doctor.check_optimizers(projection.parameters(), [], teacher)
    with pytest.raises(DistillationError, match="would never learn"):
        doctor.check_optimizers(projection.parameters(), [sgd(student)], teacher)
    with pytest.raises(DistillationError, match="teacher's parameters are in an optimizer"):
        doctor.check_optimizers(projection.parameters(), [sgd(student, projection, teacher)], teacher)


def test_a_shared_parameter_is_refused():
    teacher, student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    doctor.check_not_student(student, teacher)
    student.append(teacher[1])
    with pytest.raises(DistillationError, match="share parameters"):
        doctor.check_not_student(student, teacher)


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_weight_averaging_of_either_package_is_recognised(package):
    callbacks = pytest.importorskip(f"{package}.callbacks")

    class Mine(callbacks.EMAWeightAveraging):
        pass

    doctor.check_averaging([callbacks.ModelCheckpoint()], "do this")
    with pytest.raises(DistillationError, match=r"Mine copied the weights .* wrong pairs: do this\."):
        doctor.check_averaging([callbacks.ModelCheckpoint(), Mine()], "do this")
