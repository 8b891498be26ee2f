import pytest

from lightning_distilbert.data import sources
from lightning_distilbert.data.sources import is_hub_name, load_hub, open_splits
from lightning_distilbert.errors import DistillationError, MissingExtraError


def test_a_folder_gives_its_splits_by_their_usual_names(tmp_path):
    for name in ("train.tsv", "dev.jsonl.gz", "test.csv", "train_cleaned.tsv", "notes.md"):
        (tmp_path / name).write_text("x")
    found = open_splits(tmp_path)
    assert {split: path.name for split, path in found.items()} == {
        "train": "train.tsv",
        "validation": "dev.jsonl.gz",
        "test": "test.csv",
    }


def test_a_folder_as_on_the_hub(tmp_path):
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "README.md"):
        (tmp_path / name).write_text("x")
    assert {split: path.name[:4] for split, path in open_splits(tmp_path).items()} == {"train": "trai", "test": "test"}


def test_folder_errors(tmp_path):
    (tmp_path / "a.tsv").write_text("x")
    with pytest.raises(DistillationError, match=r"no file named after a split .* It has \['a.tsv'\]"):
        open_splits(tmp_path)
    (tmp_path / "dev.tsv").write_text("x")
    (tmp_path / "validation.tsv").write_text("x")
    with pytest.raises(DistillationError, match="more than one file for 'validation'"):
        open_splits(str(tmp_path))


def test_mappings_files_and_rows(tmp_path):
    path = tmp_path / "any.tsv"
    path.write_text("x")
    rows = [{"text": "a"}]
    assert open_splits({"train": path, "val": rows, "test": None}) == {"train": path, "validation": rows}
    assert open_splits(path) == {"train": path}
    assert open_splits(rows) == {"train": rows}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"training": []}, "'training' is not a split"),
        ({"dev": [], "validation": []}, "given twice"),
        ({}, "none of the splits"),
        (3, "A int is no source"),
        ("./gone", r"no file or folder './gone' \(working folder: "),
        ("data/gone.tsv", "no file or folder 'data/gone.tsv'"),
        ("/a/b/c", "no file or folder '/a/b/c'"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(DistillationError, match=message):
        open_splits(source)


def test_datasets_objects_are_splits_and_their_own_extra_ones_are_left_out():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"text": "a"}])
    assert open_splits(datasets.DatasetDict(train=data, unsupervised=data)) == {"train": data}
    assert open_splits(data) == {"train": data}


def test_a_hub_name_is_loaded_with_its_config(monkeypatch):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"text": "a"}])
    calls = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, streaming: calls.append((*args, streaming)) or {"train": data, "dev": data},
    )
    assert list(open_splits("nyu-mll/glue:sst2")) == ["train", "validation"]
    load_hub("imdb", streaming=True)
    assert calls == [("nyu-mll/glue", "sst2", False), ("imdb", None, True)]


def test_a_local_folder_wins_over_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.tsv").write_text("x")
    assert not is_hub_name("owner/name")
    assert list(open_splits("owner/name")) == ["train"]


def test_a_name_that_cannot_be_loaded_is_one_clear_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*args, **options):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DistillationError, match=r"no file or folder 'owner/name'.*not be loaded.*no network$"):
        load_hub("owner/name")

    def missing(module, extra):
        raise MissingExtraError(f"install [{extra}]")

    monkeypatch.setattr(sources, "require", missing)
    with pytest.raises(DistillationError, match=r"no file or folder 'owner/name'.*install \[data\]"):
        load_hub("owner/name")
