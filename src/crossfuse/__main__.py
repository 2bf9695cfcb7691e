"""``python -m crossfuse``."""

from crossfuse.entry import main

if __name__ == "__main__":
    main()
