"""The texts and judgements that a search is evaluated on, or mined from."""

from __future__ import annotations

from pathlib import Path

from lightning_distilbert.data.beir import RetrievalSplit
from lightning_distilbert.data.retrieval import RetrievalData
from lightning_distilbert.data.sources import split_name
from lightning_distilbert.errors import DistillationError


def open_split(
    source: RetrievalSplit | str | Path, split: str = "test", query: str = "query", document: str = "document"
) -> RetrievalSplit:
    r"""Read the queries, the documents and which answer which.

    Args:
        source: A BEIR folder; a folder of files of pairs, one for each split; a file of pairs, whatever the split; or a
            `RetrievalSplit`, which is returned as it is. The corpus of pairs is their documents.
        split: ``train``, ``validation`` (or ``dev``) or ``test``.
        query: The column of the query, for pairs.
        document: The column of the document, for pairs.

    Raises:
        DistillationError: If there is no such source or split, or something in it is bad.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.tsv"
        >>> _ = path.write_text("query\tdocument\nwho\tme\n")
        >>> open_split(path).documents
        ['me']
    """
    if isinstance(source, RetrievalSplit):
        return source
    path = Path(source).expanduser()
    split = split_name(split) or split
    data = RetrievalData({split: path} if path.is_file() else path, query=query, document=document)
    if not data.has_source(split):
        raise DistillationError(f"{source} has no split {split!r}, only {', '.join(data.splits())}.")
    return data.retrieval_split(split)
