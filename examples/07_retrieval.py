"""Train a cross-encoder, and let it teach a small encoder for search.

    python examples/07_retrieval.py --encoder ENCODER --data DATA

ENCODER is a sentence encoder (a folder or a hub name); DATA is a folder with train.jsonl and dev.jsonl, whose rows have
a query, a document that answers it, and negatives: a list of documents that do not.
"""

import argparse

from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationModule,
    RankingKL,
    Reranking,
    RerankingData,
    Retrieval,
    RetrievalData,
    Student,
    auto_precision,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--encoder", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--output", default="student")
parser.add_argument("--max_epochs", type=int, default=2)
arguments = parser.parse_args()


def train(module, data):
    options = {"logger": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=arguments.max_epochs, precision=auto_precision(), **options)
    trainer.fit(module, data)
    return trainer.callback_metrics["val/ndcg@10"]


# reads a query together with each of its candidates: slow and exact
cross_encoder = DistillationModule(Reranking(), student=arguments.encoder, learning_rate=3e-5)
score = train(cross_encoder, RerankingData(arguments.data, num_negatives=4))
print(f"cross-encoder: val/ndcg@10 {score:.3f} over the candidates")
teacher = cross_encoder.save_student("cross-encoder")

# reads each text once: its vectors are searched. The teacher scores the pairs of each batch, and the contrastive loss
# compares with the other documents of the batch
module = DistillationModule(
    task=Retrieval(),
    teacher=teacher,
    student=Student(source=arguments.encoder, layers=2),
    objectives=[RankingKL(temperature=0.05)],
    task_weight=0.5,
    learning_rate=1e-4,
)
score = train(module, RetrievalData(arguments.data, num_negatives=4, batch_size=32))
folder = module.save_student(arguments.output)  # loads with transformers and sentence-transformers
print(f"student: val/ndcg@10 {score:.3f} over all documents, saved in {folder}")
