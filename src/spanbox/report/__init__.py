"""HTML report of runs, made from the files of run folders and never from a model."""
