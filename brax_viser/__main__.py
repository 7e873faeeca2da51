"""Starts the command line, so that Ctrl-C ends it without a traceback from the first moment on."""

import os
import signal


def main() -> None:
    """Runs `brax-viser`, also as `python -m brax_viser`."""
    before = signal.getsignal(signal.SIGINT)
    # Imports take seconds. A KeyboardInterrupt during them would print a long traceback, and some
    # packages turn it into another error.
    if before is signal.default_int_handler:  # background processes of a shell ignore Ctrl-C
        signal.signal(signal.SIGINT, _stop)
    from brax_viser.cli import app as cli

    signal.signal(signal.SIGINT, before)
    cli.main()


def _stop(*_: object) -> None:
    os.write(1, b"Stopped before the training began.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
