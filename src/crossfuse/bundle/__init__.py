"""The bundle: a folder with a manifest, graphs per stage and target, and shared weights.

`manifest` is its typed content, `store` reads it (and trusts nothing), `writer` writes it
(atomically). Standard library and NumPy only, because the runtime uses it.
"""
