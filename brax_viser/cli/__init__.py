"""`brax-viser`: the command line."""

from brax_viser.cli.app import main

__all__ = ["main"]
