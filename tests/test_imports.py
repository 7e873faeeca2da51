"""Importing the package starts nothing, and the page needs little of it."""

import subprocess
import sys


def test_importing_starts_no_server_and_touches_no_device():
    code = (
        "import threading, brax_viser, jax; "
        "from brax_viser import Viewer, VisualizedEnv; "
        "from jax._src import xla_bridge; "
        "assert threading.active_count() == 1, threading.enumerate(); "
        "assert not xla_bridge._backends, xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_page_needs_no_brax():
    """Lets the command line open the page before Brax's imports are done."""
    code = "import sys, brax_viser.cli; assert 'brax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
