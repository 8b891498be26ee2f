from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from transformers import AutoTokenizer, BertTokenizer, DistilBertConfig, DistilBertForMaskedLM

from lightning_distilbert import DistillationModule, MaskedLM, MaskedLMData
from lightning_distilbert.data import padding_share
from lightning_distilbert.errors import DistillationError

pytest.importorskip("datasets")

WORDS = "film movie story actor plot scene music good great fine best bad poor worst dull bright".split()


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def some_texts(number: int = 90, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(10, 30))) for _ in range(number)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(some_texts()))
    (folder / "dev.txt").write_text("\n".join(some_texts(20, 1)))
    (folder / "notes.txt").write_text("not a split")
    return folder


@pytest.fixture
def make(folder, tokenizer, tmp_path):
    def make(source=folder, **options) -> MaskedLMData:
        arguments = {"tokenizer": tokenizer, "cache_dir": tmp_path / "cache", "batch_size": 8} | options
        return MaskedLMData(source, **arguments)

    return make


def truth(batch) -> list[list[int]]:
    """Return the rows as they were before they were masked, without padding."""
    ids = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
    return [row[mask.bool()].tolist() for row, mask in zip(ids, batch["attention_mask"], strict=True)]


def encoded(tokenizer, texts) -> list[list[int]]:
    return sorted(tokenizer(text)["input_ids"] for text in texts)


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_hold_every_text_masked(make, tokenizer, streaming: bool):
    data = make(streaming=streaming)
    batches = list(data.train_dataloader())
    assert all(set(batch) == {"input_ids", "attention_mask", "labels"} for batch in batches)
    assert all(value.dtype == torch.int64 for batch in batches for value in batch.values())
    assert sorted(row for batch in batches for row in truth(batch)) == encoded(tokenizer, some_texts())
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    special = torch.cat([torch.isin(b["input_ids"], torch.tensor([0, 2, 3])).flatten() for b in batches])
    assert not (labels != -100)[special].any()
    masks = torch.cat([batch["input_ids"].flatten() for batch in batches]) == tokenizer.mask_token_id
    assert 0.6 < (masks & (labels != -100)).sum() / (labels != -100).sum() < 0.95
    ordinary = sum(len(row) - 2 for batch in batches for row in truth(batch))
    assert (labels != -100).sum() / ordinary == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_masked_anew_each_epoch_alike_in_each_run_and_under_any_number_of_workers(make, streaming: bool):
    def epochs(**options):
        loader = make(streaming=streaming, **options).train_dataloader()
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found.append(list(loader))
        return found

    first, second = epochs()
    labels = [
        {
            tuple(row): line.tolist()
            for batch in batches
            for row, line in zip(truth(batch), batch["labels"], strict=True)
        }
        for batches in (first, second)
    ]
    assert labels[0].keys() == labels[1].keys()
    same = sum(
        [value for value in labels[0][row] if value != -100] == [value for value in labels[1][row] if value != -100]
        for row in labels[0]
    )
    assert same < 0.3 * len(labels[0])
    for options in ({}, {"num_workers": 2}):
        again = epochs(**options)
        assert equal(again[0], first)
        assert equal(again[1], second)
    assert not equal(epochs(seed=1)[0], first)


def test_masks_for_evaluation_stay_whatever_the_batches(make):
    def labels(**options):
        loader = make(**options).val_dataloader()
        pairs = [pair for batch in loader for pair in zip(truth(batch), batch["labels"], strict=True)]
        return {tuple(row): line[line != -100].tolist() for row, line in pairs}

    first = labels()
    assert len(first) == 20
    assert labels() == first
    assert labels(eval_batch_size=3, smoothing=0.0, streaming=True) == first
    assert labels(seed=1) != first
    assert labels(mask_share=0.5) != first


@pytest.mark.parametrize(
    "option",
    [
        {"mask_share": 0.4},
        {"smoothing": 0.0},
        {"whole_word": True},
        {"max_length": 16},
        {"min_length": 20},
        {"pack": True},
        {"separator": "blank_line"},
        {"max_unknown": 0.01},
        {"batch_size": 4},
        {"pad_to_multiple_of": 64},
        {"seed": 1},
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_each_option_changes_the_batches(make, folder, option, streaming: bool):
    # words of several pieces and unknown ones, for the options that they matter to
    rare = [" ".join(["filming", "actors", "\u4e00"] * 5) for _ in range(6)]
    (folder / "train.txt").write_text("\n".join([*some_texts(40), *rare]))
    default = list(make(streaming=streaming).train_dataloader())
    assert equal(list(make(streaming=streaming).train_dataloader()), default)
    assert not equal(list(make(streaming=streaming, **option).train_dataloader()), default)


def test_whole_words_are_masked_together(make, folder, tokenizer):
    (folder / "train.txt").write_text("\n".join(["filming actors shortest bright " * 4] * 30))
    pieces = torch.tensor([token for name, token in tokenizer.get_vocab().items() if name.startswith("##")])

    def torn(whole_word: bool) -> int:
        count = 0
        for batch in make(whole_word=whole_word).train_dataloader():
            masked = batch["labels"] != -100
            ids = torch.where(masked, batch["labels"], batch["input_ids"])
            count += int((torch.isin(ids[:, 1:], pieces) & (masked[:, 1:] != masked[:, :-1])).sum())
        return count

    assert torn(whole_word=True) == 0
    assert torn(whole_word=False) > 10


def test_smoothing_masks_rare_words_more_often(make, folder, tokenizer):
    (folder / "train.txt").write_text("\n".join(["film " * 15] * 60 + ["film " * 14 + "bright"] * 20))
    rare = tokenizer.convert_tokens_to_ids("bright")

    def share(**options) -> float:
        labels = torch.cat([b["labels"].flatten() for b in make(**options).train_dataloader()])
        return ((labels == rare).sum() / 20).item()

    assert share(smoothing=0.0) < 0.4
    assert share(smoothing=0.7) > 0.6
    assert share(smoothing=0.7, streaming=True) > 0.6


def test_sources_by_split(make, folder, tokenizer, monkeypatch):
    texts = some_texts()

    def rows(data: MaskedLMData, split: str = "train"):
        data.setup("fit")
        corpus = data._encoded[split]
        return sorted(row["input_ids"].tolist() for row in corpus[list(range(len(corpus)))])

    expected = encoded(tokenizer, texts)
    (folder / "extra").mkdir()
    (folder / "extra" / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    import datasets

    table = datasets.Dataset.from_list([{"body": text} for text in texts])
    for source in (
        folder,
        str(folder / "train.txt"),
        str(folder / "tr*.txt"),
        [folder / "train.txt"],
        {"train": str(folder / "train.txt"), "dev": folder / "dev.txt"},
        folder / "extra",
        {"train": folder / "extra" / "a.jsonl"},
        table,
        datasets.DatasetDict({"train": table, "validation": table}),
        [{"body": text} for text in texts],
    ):
        assert rows(make(source, text="body")) == expected, source
    assert rows(make(), "validation") == encoded(tokenizer, some_texts(20, 1))
    assert list(make().splits()) == ["train", "validation"]
    # a cache is a source of its own
    cache = make().corpus("train").folder
    assert rows(make(cache)) == expected
    monkeypatch.setenv("HOME", str(cache.parent))
    assert rows(make(f"~/{cache.name}")) == expected


def test_a_folder_is_split_by_the_names_of_its_texts(make, tmp_path):
    for name in ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens", "train.2.txt.gz", "train.txt.bak"):
        (tmp_path / "wiki" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "wiki" / name).write_text("a film")
    found = {split: [path.name for path in paths] for split, paths in make(tmp_path / "wiki").splits().items()}
    assert found == {
        "train": ["train.2.txt.gz", "wiki.train.tokens"],
        "validation": ["wiki.valid.tokens"],
        "test": ["wiki.test.tokens"],
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # as on the hub
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"],
            {"train": 2, "validation": 1},
        ),
        (["train_1.txt", "test_1.txt", "notes.txt"], {"train": 1, "test": 1}),
        (["wiki_train.txt", "wiki_dev.txt"], {"train": 1, "validation": 1}),
        (["one.txt", "two.txt", "training.txt"], None),
    ],
)
def test_no_text_of_another_split_is_trained_on(make, tmp_path, names, expected):
    (tmp_path / "texts").mkdir()
    for name in names:
        (tmp_path / "texts" / name).write_text("a film")
    found = make(tmp_path / "texts").splits()
    counts = {split: len(paths) for split, paths in found.items()} if expected else found
    assert counts == (expected or {"train": tmp_path / "texts"})


def test_what_a_folder_of_splits_leaves_out_is_named(make, tmp_path):
    texts = tmp_path / "texts"
    (texts / "books").mkdir(parents=True)
    (texts / ".git").mkdir()
    for name in ("the-last-train.txt", "emma.txt", "books/ulysses.txt", ".git/index.txt"):
        (texts / name).write_text("a film")
    match = r"is read, 'the-last-train.txt' \(train\); 'emma.txt' and 1 more is left out.*pass a pattern"
    with pytest.warns(UserWarning, match=match):
        assert list(make(texts).splits()) == ["train"]
    (texts / "emma.txt").unlink()
    (texts / "books/ulysses.txt").unlink()
    assert list(make(texts).splits()) == ["train"]


def test_a_folder_of_which_only_some_names_are_those_of_splits_is_refused(make, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a_hard_test.txt", "book1.txt", "book2.txt"):
        (tmp_path / "texts" / name).write_text("a film")
    with pytest.raises(DistillationError, match=r"the splits \['test'\], none named train, and 'book1.txt' and 1 more"):
        make(tmp_path / "texts").splits()


def test_of_a_streamed_data_set_the_validation_split_is_read_once(make, tokenizer):
    import datasets

    read = []

    def rows(seed: list[int]):
        read.extend(seed)
        yield from ({"text": text} for text in some_texts(20, seed[0]))

    def stream(seed: int):
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"seed": [seed]})

    source = datasets.IterableDatasetDict({"train": stream(1), "validation": stream(2), "test": stream(3)})
    data = make(source, streaming=True)
    data.prepare_data()
    for stage, loader, seed in (("fit", data.val_dataloader, 2), ("test", data.test_dataloader, 3)):
        data.setup(stage)
        found = sorted(row for batch in loader() for row in truth(batch))
        assert found == encoded(tokenizer, some_texts(20, seed))
    assert read == [2, 3]


def test_a_share_is_held_out(make, folder, tokenizer):
    def rows(**options):
        data = make(str(folder / "train.txt"), validation_share=0.2, **options)
        data.setup("fit")
        found = [data._encoded[split] for split in ("train", "validation")]
        return [[tuple(row["input_ids"].tolist()) for row in part[list(range(len(part)))]] for part in found]

    train, validation = rows()
    assert (len(train), len(validation)) == (72, 18)
    assert not set(train) & set(validation)
    assert sorted(map(list, train + validation)) == encoded(tokenizer, some_texts())
    assert rows() == [train, validation]
    assert rows(seed=1) != [train, validation]
    data = make(str(folder / "train.txt"), validation_share=0.2)
    seen = sorted(row for batch in data.val_dataloader() for row in truth(batch))
    assert seen == sorted(map(list, validation))


def test_batches_are_of_similar_length(make):
    data = make()
    batches = list(data.train_dataloader())
    lengths = [len(row) for batch in batches for row in truth(batch)]
    own = 1 - sum(lengths) / sum(batch["input_ids"].numel() for batch in batches)
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    assert own < 0.5 * padding_share(lengths, np.array_split(shuffled, len(batches)))


def test_predictions_take_texts_as_they_are(make, tokenizer):
    texts = ["the [MASK] is good", "a film"]
    data = make({"predict": [{"text": text} for text in texts]})
    (batch,) = data.predict_dataloader()
    assert "labels" not in batch
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=False)[0].count("[MASK]") == 1


class Recorder(LightningModule):
    """Learns nothing, and writes down what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list = []

    def training_step(self, batch, batch_idx):
        self.seen.append({name: value.clone() for name, value in batch.items()})
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("stop", "limit"), [(1, 1.0), (5, 1.0), (12, 1.0), (14, 1.0), (2, 1), (1, 5), (7, 5), (10, 5)])
def test_a_fit_that_is_resumed_sees_the_batches_of_an_uninterrupted_one(make, tmp_path, streaming: bool, stop, limit):
    def fit(steps: int, checkpoint=None) -> tuple[list, Trainer]:
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_train_batches=limit,
        )  # fmt: skip
        module = Recorder()
        trainer.fit(module, make(streaming=streaming, buffer=32, num_workers=0), ckpt_path=checkpoint)
        return module.seen, trainer

    whole, _ = fit(20)  # 12 batches are an epoch
    first, trainer = fit(stop)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = fit(20, tmp_path / "a.ckpt")
    assert len(whole) == 20
    assert equal(first, whole[:stop])
    assert equal(rest, whole[stop:])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("positions", ["masked", "all"])
def test_a_student_learns_from_text(make, tokenizer_dir, tokenizer, streaming: bool, positions: str):
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, n_layers=1, n_heads=2, dim=32, hidden_dim=64, dropout=0.0
    )
    torch.manual_seed(0)
    module = DistillationModule(
        MaskedLM(positions=positions),
        student=DistilBertForMaskedLM(config),
        tokenizer=tokenizer_dir,
        learning_rate=1e-2,
    )
    data = make(tokenizer=None, streaming=streaming)  # the module's
    trainer = Trainer(
        max_steps=40, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=2, check_val_every_n_epoch=1,
    )  # fmt: skip
    (before,) = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    (after,) = trainer.validate(module, data, verbose=False)
    assert after["val/loss"] < 0.8 * before["val/loss"]
    assert after["val/perplexity"] == pytest.approx(np.exp(after["val/loss"]), rel=1e-4)
    assert 0 <= after["val/accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"separator": "word"}, r"MaskedLMData\(separator=\.\.\.\) was given 'word'"),
        ({"validation_share": 1.0}, r"validation_share=1\.0: it is a share"),
        ({"validation_share": 0.1, "streaming": True}, "cannot be held out of a stream"),
        ({"buffer": 0}, "buffer=0 and num_proc=None have to be 1 or more"),
        ({"num_proc": 0}, "num_proc=0 have to be 1 or more"),
        ({"mask_share": 15}, "mask_share=15: it is the share"),
        ({"smoothing": -1.0}, "smoothing=-1.0: it has to be 0"),
        ({"max_length": 11}, "min_length=12 is above max_length=11"),
        ({"max_unknown": 7}, "max_unknown=7: it is a share"),
    ],
)
def test_options_out_of_range_are_refused(make, options, match: str):
    with pytest.raises(DistillationError, match=match):
        make(**options)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_input(make, folder, tmp_path, tokenizer, streaming: bool):
    import datasets

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01")
    (tmp_path / "rows.jsonl").write_text('{"body": "a"}')
    streamed = datasets.Dataset.from_list([{"text": "a film"}]).to_iterable_dataset()
    bad = [
        (tmp_path / "empty.txt", {}, "there is no text in|has 0 sequences"),
        (tmp_path / "binary.txt", {}, "there is a zero byte"),
        (str(tmp_path / "*.zst"), {}, "No file matches the pattern"),
        (str(tmp_path / "missing.txt"), {}, "There is no file or folder"),
        ("no/corpus", {}, "There is no file or folder 'no/corpus'"),
        (tmp_path / "rows.jsonl", {}, r"there is no column 'text'. Its columns are \['body'\]"),
        (folder, {"max_length": 2, "min_length": 2}, "max_length=2 leaves no room"),
        (folder, {"max_length": 11}, "min_length=12 is above max_length=11"),
        (folder, {"mask_share": 0.0}, "mask_share=0.0"),
        (folder, {"smoothing": -1.0}, "smoothing=-1.0"),
        ({"dev": folder / "dev.txt"}, {}, "There is no split 'train'"),
    ]
    if not streaming:
        one = {"validation_share": 0.1, "min_length": 3}
        bad += [
            (streamed, {}, "is a streamed data set: pass streaming=True"),
            (folder, {"validation_share": 0.1}, r"there are the splits \['train', 'validation'\]"),
            (folder / "notes.txt", one, "leaves one of the splits empty"),
        ]
    for source, options, match in bad:
        with pytest.raises(DistillationError, match=match):
            list(make(source, streaming=streaming, **options).train_dataloader())


def test_a_cache_of_another_tokenizer_or_length_is_refused_as_a_source(make, tokenizer):
    cache = make().corpus("train").folder
    other = BertTokenizer(vocab={**tokenizer.get_vocab(), "new": len(tokenizer)}, model_max_length=64)
    with pytest.raises(DistillationError, match="is a cache of another tokenizer than BertTokenizer"):
        make(cache, tokenizer=other).setup("fit")
    with pytest.raises(DistillationError, match="holds sequences of up to 64 tokens, more than max_length=32"):
        make(cache, max_length=32).setup("fit")
    next(cache.glob("*.arrow")).write_bytes(b"")
    with pytest.raises(DistillationError, match="is damaged"):
        make(cache).setup("fit")


def test_overfitting_needs_batches_that_stay(make):
    def fit(**options) -> list:
        trainer = Trainer(
            overfit_batches=1, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        module = Recorder()
        trainer.fit(module, make(**options))
        return module.seen

    first, second = fit()
    assert equal([first], [second])
    with pytest.raises(DistillationError, match="overfit_batches needs batches that stay"):
        fit(streaming=True)


def test_a_teacher_with_another_tokenizer_is_refused(make, monkeypatch):
    data = make()
    monkeypatch.setattr(data, "teacher_tokenizer", lambda: BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1}))
    with pytest.raises(DistillationError, match="masked tokens cannot be carried over"):
        data.setup("fit")


def test_caches_are_kept_in_the_user_s_folder_unless_another_is_named(make, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data = make(cache_dir=None)
    data.setup("fit")
    assert data.corpus("train").folder.parent == tmp_path / "home" / "lightning_distilbert" / "text"


def test_a_fit_tokenises_in_prepare_data(make, tmp_path):
    data = make()
    data.prepare_data()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert make(streaming=True, cache_dir=tmp_path / "other").prepare_data() is None
    assert len(list((tmp_path / "other").iterdir())) == 1  # the validation split


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_tokenizer_that_does_not_serve_is_refused_before_anything_is_tokenised(make, tokenizer, tmp_path, whole_word):
    match = "has no mask token"
    if whole_word:
        vocabulary = {
            token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"])
        }
        tokenizer, match = BertTokenizer(vocab=vocabulary), "marks neither the beginnings of words"
    else:
        tokenizer.mask_token = None
    with pytest.raises(DistillationError, match=match):
        make(tokenizer=tokenizer, whole_word=whole_word).prepare_data()
    assert not (tmp_path / "cache").exists()
