"""Text and vision towers, pooling of spans and regions, and the dual encoder."""
