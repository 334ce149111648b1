"""From features to figures: extraction, retrieval, entity-object matching."""
