"""`python -m brax_viser.cli`."""

from brax_viser.cli.app import main

main()
