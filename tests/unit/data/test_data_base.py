import gzip
import warnings
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from lightning_distilbert._compat import LightningModule, Trainer
from lightning_distilbert.data import RetrievalData, TextClassificationData, TextData
from lightning_distilbert.errors import DistillationError

ROWS = [{"text": " ".join(["good"] * (1 + i * 5 % 11)), "label": i} for i in range(23)]


class Recorder(LightningModule):
    """Keeps the labels and lengths of each batch."""

    def __init__(self, tokenizer=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.tokenizer = tokenizer
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch):
        self.seen["train"].append((self.current_epoch, batch["labels"].tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch):
        self.seen["val"].append(batch["labels"].tolist())

    def test_step(self, batch):
        self.seen["test"].append(batch["labels"].tolist())

    def predict_step(self, batch):
        return batch["attention_mask"].sum(dim=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trainer_runs_all_stages_with_the_modules_tokenizer(tokenizer):
    data = TextClassificationData({"train": ROWS, "dev": ROWS[:9], "test": ROWS[:7]}, batch_size=4)
    module, runner = Recorder(tokenizer), trainer(max_epochs=2)
    runner.fit(module, data)
    for epoch in (0, 1):
        rows = [label for at, labels in module.seen["train"] if at == epoch for label in labels]
        assert sorted(rows) == list(range(23))
        assert rows != sorted(rows)
    assert sorted(label for labels in module.seen["val"] for label in labels) == sorted(2 * list(range(9)))
    assert max(map(len, module.seen["val"])) > 4  # eval_batch_size is twice batch_size
    runner.test(module, data)
    assert sorted(label for labels in module.seen["test"] for label in labels) == list(range(7))
    lengths = torch.cat(runner.predict(module, data))
    assert lengths.tolist() == [len(row["text"].split()) + 2 for row in ROWS[:7]]


def test_no_validation_split_means_no_validation_and_no_warning(tokenizer):
    module, runner = Recorder(tokenizer), trainer(max_epochs=1)
    runner.fit(module, TextClassificationData(ROWS))
    assert module.seen["train"]
    assert module.seen["val"] == []
    with pytest.raises(DistillationError, match=r"no split 'test': the list passed in has only \['train'\]"):
        runner.test(module, TextClassificationData(ROWS))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_overfit_batches_repeat_whole_batches(tokenizer):
    module, runner = Recorder(tokenizer), trainer(max_epochs=2, overfit_batches=2)
    runner.fit(module, TextClassificationData({"train": ROWS, "dev": ROWS}, batch_size=4))
    first, second = ([labels for at, labels in module.seen["train"] if at == epoch] for epoch in (0, 1))
    assert first == second
    assert [len(labels) for labels in first] == [4, 4]


def test_splits_are_encoded_once_and_again_for_another_tokenizer(tokenizer, tokenizer_dir, monkeypatch):
    calls = []
    monkeypatch.setattr(TextClassificationData, "read_split", lambda self, split: calls.append(split) or ROWS[:5])
    data = TextClassificationData({"train": ROWS, "dev": ROWS}, tokenizer=tokenizer, labels=[str(i) for i in range(5)])
    data.setup("fit")
    assert calls == ["train", "validation"]
    data.setup("validate")
    data.setup("fit")
    assert calls == ["train", "validation"]
    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    other.add_tokens(["goodgood"])
    data.tokenizer = other
    data.setup("validate")
    assert calls == ["train", "validation", "validation"]


def test_loaders_work_alone_without_a_trainer(tokenizer_dir):
    data = TextClassificationData({"train": ROWS, "dev": ROWS}, tokenizer=str(tokenizer_dir), batch_size=5)
    assert sum(len(batch["labels"]) for batch in data.train_dataloader()) == 23
    assert sum(len(batch["labels"]) for batch in data.val_dataloader()) == 23


def test_each_option_changes_the_batches(tokenizer):
    def first(**options):
        data = TextClassificationData({"train": ROWS, "dev": ROWS}, tokenizer=tokenizer, **options)
        return next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))

    train, val = first(batch_size=4)
    assert train["input_ids"].shape == (4, 13)
    assert len(val["labels"]) == 8
    assert first(batch_size=8)[0]["labels"].shape == (8,)
    assert len(first(batch_size=4, eval_batch_size=3)[1]["labels"]) == 3
    assert first(batch_size=4, max_length=6)[0]["input_ids"].shape == (4, 6)
    assert first(batch_size=4, pad_to_multiple_of=16)[0]["input_ids"].shape == (4, 16)
    loaders = [
        TextClassificationData(ROWS, tokenizer=tokenizer, batch_size=4, seed=s).train_dataloader() for s in (0, 1)
    ]
    orders = [[batch["labels"].tolist() for batch in loader] for loader in loaders]
    assert orders[0] != orders[1]


def test_workers_give_the_same_batches(tokenizer):
    loaders = [
        TextClassificationData(ROWS, tokenizer=tokenizer, batch_size=4, num_workers=n).train_dataloader()
        for n in (0, 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forking a process with threads
        alone, workers = ([batch["input_ids"].tolist() for batch in loader] for loader in loaders)
    assert alone == workers


def test_a_tokenizer_limit_below_max_length_is_kept(tokenizer):
    tokenizer.model_max_length = 5
    data = TextClassificationData(ROWS, tokenizer=tokenizer)
    assert next(iter(data.train_dataloader()))["input_ids"].shape[1] == 5


def test_a_student_with_fewer_positions_than_max_length_gets_no_longer_rows(tokenizer):
    module = Recorder(tokenizer)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    module.student = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=6))
    data = TextClassificationData({"train": ROWS, "test": ROWS})
    trainer(max_epochs=1).fit(module, data)
    assert data.effective_max_length() == 6
    assert max(batch["input_ids"].shape[1] for batch in data.train_dataloader()) == 6
    assert max(batch["input_ids"].shape[1] for batch in data.test_dataloader()) == 6


def test_no_tokenizer_and_an_unknown_one(tmp_path):
    with pytest.raises(DistillationError, match="TextClassificationData has no tokenizer, and no module"):
        TextClassificationData(ROWS).setup("fit")
    data = TextClassificationData(ROWS)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace())
    with pytest.raises(DistillationError, match="has no tokenizer"):
        data.setup("fit")
    with pytest.raises(DistillationError, match=r"The tokenizer folder .*gone' does not exist"):
        TextClassificationData(ROWS, tokenizer=str(tmp_path / "gone")).setup("fit")


def test_a_tokenizer_that_the_module_does_not_share_is_refused(tokenizer):
    other = type(tokenizer)(vocab={**tokenizer.get_vocab(), "[new]": len(tokenizer.get_vocab())})
    data = TextClassificationData(ROWS, tokenizer=other)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(tokenizer=tokenizer))
    with pytest.raises(DistillationError, match=r"tokenizer of its own, of \d+ tokens.*the student would read another"):
        data.setup("fit")
    data.trainer.lightning_module.tokenizer = other
    data.setup("fit")


def test_a_missing_split_is_named(tokenizer):
    with pytest.raises(DistillationError, match=r"no split 'train': the dict .* has only \['validation'\]"):
        TextClassificationData({"dev": ROWS}, tokenizer=tokenizer).setup("fit")


@pytest.mark.parametrize(
    "option", ["batch_size", "eval_batch_size", "max_length", "pad_to_multiple_of", "num_workers", "seed"]
)
def test_sizes_out_of_range(option):
    with pytest.raises(DistillationError, match=f"{option}=-1"):
        TextData(ROWS, **{option: -1})


def test_only_hub_names_are_prepared(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("lightning_distilbert.data.base.load_hub", calls.append)
    for source in ("owner/name:config", str(tmp_path), ROWS):
        TextData(source).prepare_data()
    TextData(ROWS, unlabelled="owner/more").prepare_data()
    assert calls == ["owner/name:config", "owner/more"]


def test_the_command_line_can_build_it(tmp_path, tokenizer_dir):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextData, "data")
    config = parser.parse_args(
        [
            "--data=lightning_distilbert.data.TextClassificationData",
            '--data.source={"train": "a.tsv", "dev": "b.tsv"}',
            '--data.text=["one", "two"]',
            f"--data.tokenizer={tokenizer_dir}",
            "--data.columns=[one, two, label]",
        ]
    )
    data = parser.instantiate(config).data
    assert isinstance(data, TextClassificationData)
    assert data.source == {"train": "a.tsv", "dev": "b.tsv"}
    assert data.text == ["one", "two"]
    assert data.tokenizer == str(tokenizer_dir)
    plain = parser.parse_args(["--data=lightning_distilbert.data.RetrievalData", "--data.source=owner/name:sst2"])
    assert parser.instantiate(plain).data.source == "owner/name:sst2"


# -- unlabelled text files ---------------------------------------------------------------------------------------------

LINES = ["a long story", "the best of all films", "a dull plot"]


def write_lines(path: Path) -> Path:
    text = "\n".join([LINES[0], "", f"  {LINES[1]} ", LINES[2], ""]).encode()
    if path.suffix == ".zst":
        text = pytest.importorskip("zstandard").compress(text)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["more.txt", "more.txt.gz", "more.TXT.zst"])
@pytest.mark.parametrize("as_split", [True, False])
def test_unlabelled_text_files_have_a_text_in_each_line(name: str, as_split: bool, tmp_path: Path, tokenizer):
    path = write_lines(tmp_path / name)
    source = {"train": str(path)} if as_split else path
    labelled = {"train": [{"text": "a great movie", "label": 1}, {"text": "a dull plot", "label": 0}]}
    (batch,) = TextClassificationData(labelled, unlabelled=source, tokenizer=tokenizer).train_dataloader()
    found = {tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"][batch["labels"] == -100]}
    assert found == set(LINES)
    assert sorted(batch["labels"].tolist()) == [-100] * 3 + [0, 1]
    documents = RetrievalData({"train": [("who", "me")]}, unlabelled=source, tokenizer=tokenizer).train_dataloader()
    assert [batch["document"]["input_ids"].shape[0] for batch in documents] == [4]


def test_unlabelled_text_files_that_do_not_fit_are_refused(tmp_path: Path, tokenizer):
    def fails(unlabelled: object, match: str, **options: object) -> None:
        data = TextClassificationData({"dev": ROWS}, unlabelled=unlabelled, tokenizer=tokenizer, **options)
        with pytest.raises(DistillationError, match=match):
            data.setup("fit")

    path = tmp_path / "more.txt"
    path.write_text("one text\n", encoding="utf-8")
    fails(path, r"one text in each line, and a row here has 2, \['text', 'label'\]", text=["text", "label"], label=None)
    fails("nowhere.txt.gz", r"There is no file or folder 'nowhere\.txt\.gz' \(working folder: [^)]*\)\.$")
    fails("nowhere.txt", r"There is no file or folder 'nowhere\.txt' \(working folder: [^)]*\)\.$")  # and no hub name
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    fails(tmp_path / "empty.txt", "empty.txt holds no text")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    fails(tmp_path / "binary.txt", "UTF-8")


def test_a_text_file_with_a_delimiter_stays_a_table(tmp_path: Path, tokenizer):
    path = tmp_path / "table.txt"
    path.write_text("text;other\na film;x\n", encoding="utf-8")
    data = TextClassificationData({"dev": ROWS}, unlabelled=path, delimiter=";", label=None, tokenizer=tokenizer)
    (batch,) = data.train_dataloader()
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]] == ["a film"]
