"""The command line, `brax-viser`."""

from brax_viser.cli.app import main

__all__ = ["main"]
