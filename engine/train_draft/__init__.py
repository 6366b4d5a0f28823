"""Training of drafting heads for a frozen checkpoint: `python -m penstock.engine.train_draft`."""
