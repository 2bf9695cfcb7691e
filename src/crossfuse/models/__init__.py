"""The zoo: five cross-attention systems, written to be read.

Each module holds one system: its layers (from `layers`), its sizes, and a ``spec(size, seed)`` that
gives a
:class:`crossfuse.ModelSpec` ready for export. `registry` lists them; `checkpoints` loads published
weights.
"""
