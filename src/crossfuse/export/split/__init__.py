"""Context, query and step stages: what depends on what, and where to cut."""
