"""One step of pretraining distillation, BERT-base into DistilBERT: ours against the original script's way.

    python -m benchmarks.pretraining_step
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.pretraining_step --rounds 5

Forward, backward and optimizer step of the triple loss on one batch of 16 texts of unequal length (about 1,500 real
tokens), random weights of the real sizes (speed does not depend on them). All ways share one teacher and one student
and take turns; the figure is the median of the rounds, in real tokens a second of processor time.

The original's way, written anew from what its script does: float32, all logits of both models at all positions in
memory at once, the real ones then selected, AdamW without fusion.
"""

import argparse
import contextlib
import statistics
import time

import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from lightning_distilbert import HiddenStates, MaskedLM, SoftTargets, build_student
from lightning_distilbert.engine import Distiller
from lightning_distilbert.report.table import Table, replace_region
from lightning_distilbert.teacher import Teacher, cast_linear

TEMPERATURE = 2.0
WAYS = {
    "original's way": {},
    "ours, float32": {"precision": "32-true", "positions": "all"},
    "ours, bf16-mixed": {"precision": "bf16-mixed", "positions": "all"},
    "ours, bf16-mixed, eager attention": {"precision": "bf16-mixed", "positions": "all", "attention": "eager"},
    "ours, bf16-mixed, eager, soft targets at masked tokens": {
        "precision": "bf16-mixed",
        "positions": "masked",
        "attention": "eager",
    },
}


def texts(rows, vocabulary, seed=0):
    """A batch of lognormal lengths, of which neighbours are alike as after grouping by length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.exp(torch.randn(rows, generator=generator) * 0.05 + 4.55).round().long().clamp(16, 512)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, vocabulary, mask.shape, generator=generator) * mask
    masked = (torch.rand(mask.shape, generator=generator) < 0.15) & mask
    return {
        "input_ids": ids.masked_fill(masked, 103),
        "attention_mask": mask.long(),
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.where(masked, ids, -100),
    }


def original(teacher, student, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    ours = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    real = mask.bool().unsqueeze(-1)
    selected = [
        torch.masked_select(model.logits, real.expand_as(model.logits)).view(-1, model.logits.shape[-1]) / TEMPERATURE
        for model in (ours, theirs)
    ]
    soft = F.kl_div(F.log_softmax(selected[0], -1), F.softmax(selected[1], -1), reduction="batchmean") * TEMPERATURE**2
    language = F.cross_entropy(ours.logits.view(-1, ours.logits.shape[-1]), batch["labels"].view(-1))
    last = [model.hidden_states[-1] for model in (ours, theirs)]
    width = last[0].shape[-1]
    last = [torch.masked_select(states, real.expand_as(states)).view(-1, width) for states in last]
    cosine = F.cosine_embedding_loss(*last, torch.ones(len(last[0])))
    return 5 * soft + 2 * language + cosine


def ours(teacher, student, batch, positions):
    task = MaskedLM(positions=positions)
    objectives = [SoftTargets(temperature=TEMPERATURE, weight=5.0), HiddenStates(layers="last", metric="cosine")]
    distiller = Distiller(teacher, objectives, "", "mean", 2.0)
    distiller.build(student)
    with distiller.watch(student, batch, task.positions(batch)) as taps:
        outputs = task.run(student, batch)
    return distiller.total(task.loss(outputs, batch), taps.records)[0]


def measure(way, teacher, student, optimizers, batch):
    bf16 = way.get("precision") == "bf16-mixed"
    attention = way.get("attention", "sdpa")
    student.set_attn_implementation(attention)
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    start = time.process_time()
    with autocast:
        loss = ours(teacher[bf16], student, batch, way["positions"]) if way else original(teacher[None], student, batch)
    loss.backward()
    optimizer = optimizers[bool(way)]
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start, float(loss.detach())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; fewer for a quick look")
    parser.add_argument("--table", nargs="*", help="also write the table into these files")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(num_hidden_layers=arguments.layers)).eval().requires_grad_(False)
    student = build_student(model, layers=arguments.layers // 2, auto_class="AutoModelForMaskedLM").train()
    half = BertForMaskedLM(model.config).eval().requires_grad_(False)
    half.load_state_dict(model.state_dict())
    teacher = {None: model, False: Teacher(model), True: Teacher(half)}
    cast_linear(half, torch.bfloat16)  # what `Teacher.prepare` does under bf16-mixed
    optimizers = {
        False: torch.optim.AdamW(student.parameters(), lr=1e-6),
        True: torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True),
    }
    batch = texts(arguments.rows, model.config.vocab_size)
    tokens = int(batch["attention_mask"].sum())
    seconds = {name: [] for name in WAYS}
    for number in range(arguments.rounds + 1):
        for name, way in WAYS.items():
            spent, loss = measure(way, teacher, student, optimizers, batch)
            print(f"round {number}, {name}: {spent:.2f} s, loss {loss:.3f}", flush=True)
            if number:  # the first one warms up
                seconds[name].append(spent)
    rate = {name: tokens / statistics.median(spent) for name, spent in seconds.items()}
    base = rate["original's way"]
    rows = [[name, f"{value:.0f}", f"{value / base:.2f}"] for name, value in rate.items()]
    table = Table(["step", "real tokens a second", "ratio"], rows, align="lrr")
    print(f"{tokens} real tokens a batch, {torch.get_num_threads()} threads")
    print(table.to_text())
    for file in arguments.table or []:
        replace_region(file, "pretraining-step", table.to_markdown())


if __name__ == "__main__":
    main()
