"""What a run has become, as one HTML page: reads the files of run folders, and never a model."""
