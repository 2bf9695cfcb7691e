"""What an export must know of a model: :class:`~crossfuse.spec.model_spec.ModelSpec`, and what its
inputs mean."""
