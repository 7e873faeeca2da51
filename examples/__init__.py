"""Short runnable scripts: `python -m examples.NAME`."""
