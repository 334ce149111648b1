"""Losses that see only tensors: one kernel, and what builds masks and weights for it."""
