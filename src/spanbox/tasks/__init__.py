"""What can be trained: each task is a model, its losses, and the way from a batch to both."""
