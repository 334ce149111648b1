"""Text and vision towers, pooling of spans and regions, and the dual encoder."""

from spanbox.torchvision_guard import hide_broken_torchvision

hide_broken_torchvision()
