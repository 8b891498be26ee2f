"""A student of every architecture: cut, saved, and loaded where this package cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, MPNetTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from lightning_distilbert.folder import load_tokenizer, save_student, student_tokenizer
from lightning_distilbert.student import Student
from tests.encoders import CONFIGS, assert_sliced, batch_of, model_of

RULES = {
    "uniform": ({"layers": 2}, [0, 3]),
    "first": ({"layers": 2, "rule": "first"}, [0, 1]),
    "last": ({"layers": 3, "rule": "last"}, [1, 2, 3]),
    "explicit": ({"layers": [0, 2, 3]}, [0, 2, 3]),
}
CHANGES = {"roberta": {"pad_token_id": 1}, "mpnet": {"pad_token_id": 1}}
TEXTS = ["the film", "a great story of the year"]


# a ModernBERT without its first layer is another one, but in a special case: tests/unit/test_student.py
@pytest.mark.parametrize(
    ("name", "rule"), [(name, rule) for name in CONFIGS for rule in RULES if (name, rule) != ("modernbert", "last")]
)
def test_every_rule_cuts_every_architecture(name, rule, tmp_path):
    arguments, chosen = RULES[rule]
    teacher = model_of(name, **CHANGES.get(name, {}))
    teacher.save_pretrained(tmp_path)
    student = Student(**arguments).build(tmp_path)
    assert student.config.model_type == ("distilbert" if name == "bert" else name)
    assert student.config.initialised_from == chosen
    assert_sliced(student, teacher, chosen, batch_of(pad=teacher.config.pad_token_id))


def tokenizer_for(name):
    """A tokenizer of the class that models of this architecture come with, for 60 ids at most."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    if name in ("bert", "electra", "distilbert"):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=30)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if name == "mpnet":
        words = [*special, "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
        return MPNetTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=30)
    if name == "roberta":
        vocab = {word: index for index, word in enumerate([*special, *letters, "\u0120"])}
        return RobertaTokenizer(vocab=vocab, merges=[], model_max_length=30)
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate([*special, *letters, "\u0120"])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=30, **{f"{kind}_token": token for kind, token in names.items()}
    )


def test_tokenizers_of_other_architectures_are_kept_for_a_distilbert(tmp_path):
    teacher, tokenizer = model_of("roberta", pad_token_id=1), tokenizer_for("roberta")
    student = Student(layers=2, architecture="distilbert").build(teacher)
    assert student_tokenizer(tokenizer, student) is tokenizer
    save_student(student, tokenizer, tmp_path / "student")
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again(TEXTS, TEXTS)["input_ids"] == tokenizer(TEXTS, TEXTS)["input_ids"]
    assert (again.pad_token_id, again.mask_token) == (1, "<mask>")
    assert set(again("a", "b")) == {"input_ids", "attention_mask"}
    batch = dict(again(TEXTS, padding=True, return_tensors="pt"))
    assert batch["input_ids"][0, -1] == 1
    assert_sliced(student, teacher, [0, 3], batch)


ALONE = """
import json, sys
sys.modules["lightning_distilbert"] = None
import torch
from transformers import AutoModel, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the film", "a great story of the year"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    torch.save({"states": states, "ids": batch["input_ids"], "names": sorted(batch)}, folder + "/out.pt")
"""
KINDS = {
    **{name: (name, {"architecture": "same", "layers": [0, 2]}) for name in CONFIGS},
    "roberta as DistilBERT": ("roberta", {"architecture": "distilbert"}),
    "electra as DistilBERT": ("electra", {"architecture": "distilbert"}),
    "narrow": ("bert", {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 12}),
}


def test_folders_load_where_this_package_cannot_be_imported(tmp_path):
    wanted = {}
    for kind, (name, arguments) in KINDS.items():
        changes = {"embedding_size": 16} if kind == "electra as DistilBERT" else CHANGES.get(name, {})
        student, tokenizer = Student(**arguments).build(model_of(name, **changes)), tokenizer_for(name)
        save_student(student, tokenizer, tmp_path / kind)
        batch = student_tokenizer(tokenizer, student)(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            wanted[kind] = (student.eval()(**batch).last_hidden_state, batch)
        assert load_tokenizer(tmp_path / kind).model_max_length == 30
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    folders = [str(tmp_path / kind) for kind in KINDS]
    subprocess.run([sys.executable, "-c", ALONE, *folders], check=True, cwd=tmp_path, env=environment, timeout=240)
    for kind, (expected, batch) in wanted.items():
        found = torch.load(tmp_path / kind / "out.pt", weights_only=True)
        assert torch.equal(found["ids"], batch["input_ids"]), kind
        assert found["names"] == sorted(batch), kind
        torch.testing.assert_close(found["states"], expected, rtol=0, atol=1e-6)
        assert "initialised_from" in json.loads((tmp_path / kind / "config.json").read_text())
