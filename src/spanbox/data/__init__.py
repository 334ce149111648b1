"""Data: manifests and images to batches of tensors."""
