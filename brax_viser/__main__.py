"""`brax-viser`, and `python -m brax_viser`: Ctrl-C ends it without a traceback from the start."""

import os
import signal


def main() -> None:
    """The console script."""
    before = signal.getsignal(signal.SIGINT)
    # Importing takes seconds. A KeyboardInterrupt in the midst of it is not only printed with a
    # long traceback: packages that import each other may turn it into an error of another kind.
    if before is signal.default_int_handler:  # a shell has it ignored for what is in the background
        signal.signal(signal.SIGINT, _stop)
    from brax_viser.cli import app as cli

    signal.signal(signal.SIGINT, before)
    cli.main()


def _stop(*_: object) -> None:
    os.write(1, b"Stopped before the training began.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
