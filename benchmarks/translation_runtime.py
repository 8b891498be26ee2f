"""What the decoder's cache is worth: a student that translates, by its runtime, with and without it, and by torch.

    python -m benchmarks.translation_runtime [--rounds 5]

The student has the sizes of `benchmarks.translation`: MiniLM's encoder of 6 layers, 384 wide, a decoder of 2, and 8,000
sub-words. Its weights are random, which changes no time; each text has 14 tokens, and each translation 16, since the
end is made impossible. One thread; the processor's time, the best of interleaved rounds, so that other work on the
machine counts little.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig

from lightning_distilbert import Student, Translation, TranslationStudent
from lightning_distilbert.deploy.onnx import write_onnx
from lightning_distilbert.deploy.quantization import OnnxQuantizer, PairQuantizer
from lightning_distilbert.deploy.runtime.search import Search, search
from lightning_distilbert.deploy.runtime.translator import MASK, Decoding, Translator
from lightning_distilbert.deploy.seq2seq import DECODER, ENCODER, Seq2SeqGraph
from lightning_distilbert.report.table import Table, replace_region

PAGE = Path(__file__).resolve().parents[1] / "docs/deploy.md"
ENCODER_SIZES = {"model_type": "distilbert", "dim": 384, "n_heads": 12, "n_layers": 6, "hidden_dim": 1536}
SOURCE, TARGET = 14, 16
CASES = ((1, 1), (1, 4), (16, 4))  # texts at once, beams
END = 3


class Forgetful(Decoding):
    """A decoder that reads all tokens of a translation again for each new one."""

    def __init__(self, session, texts):
        super().__init__(session, texts)
        self.seen = None

    def step(self, tokens):
        column = tokens[:, None]
        self.seen = column if self.seen is None else np.concatenate([self.seen, column], axis=1)
        self._past = {
            name: np.zeros((len(tokens), *v.shape[1:2], 0, v.shape[3]), "f4") for name, v in self._past.items()
        }
        return self.read(self.seen)[:, -1]

    def take(self, rows):
        super().take(rows)
        self.seen = None if self.seen is None else self.seen[rows]


def built(folder):
    """Build the student and both of its artefacts; returns the student, and the translators by name."""
    described = TranslationStudent(Student(config=ENCODER_SIZES), decoder_layers=2, vocab_size=8000)
    model = described.build(auto_class="AutoModelForSeq2SeqLM").eval()
    model.decoder.cls.predictions.bias.data[END] = -100.0
    graph = Seq2SeqGraph(Translation(), model)
    files = [folder / name for name in (ENCODER, DECODER)]
    for part, file in zip((graph.encoder, graph.decoder), files, strict=True):
        write_onnx(part, file)
    PairQuantizer(*map(OnnxQuantizer, files)).write(folder)
    small = [file.with_name(f"{file.stem}_int8.onnx") for file in files]
    sizes = {"onnx": files, "onnx-int8": small}
    for name, parts in sizes.items():
        print(name, *(f"{part.name} {part.stat().st_size / 1e6:.1f} MB" for part in parts))
    return model, {name: Translator(*parts, threads=1) for name, parts in sizes.items()}


def runs(model, translators, texts, beams):
    """What is measured on so many texts, by name."""
    settings = {"decoder_start_token_id": 2, "eos_token_id": END, "pad_token_id": 0, "max_new_tokens": TARGET}
    settings |= {"num_beams": beams, "early_stopping": beams > 1}
    rules, ids = Search.read(settings), np.random.default_rng(0).integers(5, 30000, (texts, SOURCE))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def through(translator, decoding):
        found = translator.encoder.run(batch) | {MASK: batch["attention_mask"]}
        return search(decoding(translator.decoder, found), texts, rules)

    def through_torch():
        tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
        return model.generate(**tensors, generation_config=GenerationConfig(**settings))

    found = {"PyTorch": through_torch}
    for name, translator in translators.items():
        found[name] = partial(through, translator, Decoding)
        found[f"{name}, without the past"] = partial(through, translator, Forgetful)
    return found


def seconds(run):
    start = time.process_time()
    run()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    best = {}
    with tempfile.TemporaryDirectory() as folder:
        model, translators = built(Path(folder))
        for _ in range(arguments.rounds):
            for case in CASES:
                for kind, run in runs(model, translators, *case).items():
                    best[kind, case] = min(best.get((kind, case), np.inf), seconds(run))
    kinds = sorted({kind for kind, _ in best}, key=lambda kind: -best[kind, CASES[0]])
    header = ["", *(f"{texts} x {beams} beam{'s' * (beams > 1)}" for texts, beams in CASES)]
    table = Table(header, [[kind, *(f"{best[kind, case] * 1000:.0f} ms" for case in CASES)] for kind in kinds])
    print(table.to_text())
    if PAGE.is_file() and "<!-- translation-runtime:begin -->" in PAGE.read_text(encoding="utf-8"):
        replace_region(PAGE, "translation-runtime", table.to_markdown())


if __name__ == "__main__":
    main()
