"""The commands of the command line: each parses, calls :mod:`crossfuse.api` and renders."""
