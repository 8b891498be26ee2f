"""The quickstart: a real teacher distilled on a corpus that is on every machine."""
