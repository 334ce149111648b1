"""Text and vision towers, the pooling of spans and regions, and the dual encoder made of them."""
