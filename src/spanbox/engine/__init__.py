"""The training run: steps, optimiser, checkpoints, log."""
