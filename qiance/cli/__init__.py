"""The command line; rooms are imported inside the commands."""

from qiance.cli.main import main

__all__ = ["main"]
