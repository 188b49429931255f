"""The command line."""

from ytuning.cli.program import app, main

__all__ = ["app", "main"]
