"""Contrastive losses on features: one kernel, and the masks and weights for it."""
