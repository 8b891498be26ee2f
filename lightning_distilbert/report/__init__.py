"""Proof: what a model scores, how sure that is, what it costs, and tables of it."""
