"""Starts the command line, so that Ctrl-C ends it without a traceback from the first moment on."""

import os
import signal

from brax_viser.process import last_words


def main() -> None:
    """Runs `brax-viser`, also as `python -m brax_viser`."""
    # Imports take seconds. A KeyboardInterrupt during them would print a long traceback, and some
    # packages turn it into another error. It stays until a training takes Ctrl-C itself: between
    # the two no press may end the command without a word.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in a shell's foreground
        signal.signal(signal.SIGINT, _stop)
    from brax_viser.cli import app as cli

    cli.main()


def _stop(*_: object) -> None:
    last_words(1, "Stopped before the training began.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
