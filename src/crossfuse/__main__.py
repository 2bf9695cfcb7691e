"""``python -m crossfuse``."""

from crossfuse.commands.process import main

if __name__ == "__main__":
    main()
