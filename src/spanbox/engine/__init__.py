"""Training: steps, optimiser, checkpoints, log."""
