"""Tasks of training: each is a model, its losses, and the way from a batch to both."""
