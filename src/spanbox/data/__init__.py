"""Data: manifests and images to batches of tensors."""

from spanbox.torchvision_guard import hide_broken_torchvision

hide_broken_torchvision()
