"""One rewriting per file, each with its rules and the cases where it must not fire."""
