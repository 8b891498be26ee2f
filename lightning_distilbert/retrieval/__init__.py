"""The evaluation side of retrieval: encoding a corpus, exact search, BM25, hard negatives and scores."""
