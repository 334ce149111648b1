"""The `spanbox` command: one file per verb, thin."""
