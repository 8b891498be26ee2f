"""The commands of the command line, one module each: `lightning_distilbert.cli` imports one when it is run."""
