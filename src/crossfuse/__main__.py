"""``python -m crossfuse``."""

from crossfuse.cli import main

if __name__ == "__main__":
    main()
