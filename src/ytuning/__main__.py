"""``python -m ytuning``: the command, where no script of it is on the path."""

from __future__ import annotations

from ytuning.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
