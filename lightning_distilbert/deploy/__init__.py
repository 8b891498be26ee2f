"""Students as artefacts: exported, verified, and run where they are used.

Nothing is imported here: `lightning_distilbert.deploy.runtime` has to work where there is no torch.
"""
