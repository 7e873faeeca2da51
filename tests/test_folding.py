"""Repeated lines of native libraries are counted; nothing else of the output is touched."""

import contextlib
import subprocess
import sys
import textwrap
import threading

from brax_viser.cli.folding import MutedThread


def output_of(script: str) -> list[str]:
    """Runs a script with the output folded; returns its lines."""
    head = "import ctypes, os, sys, time\nfrom brax_viser.cli.folding import FoldedOutput\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def test_lines_that_differ_by_numbers_alone_are_shown_once_and_counted():
    lines = output_of(
        """
        print("before")
        with FoldedOutput(print):
            for i in range(2000):
                os.write(1, b"solver stopped at %d\\n" % i)
                time.sleep(1e-5)  # as a library's thread would, lets Python's threads run
            os.write(1, b"something else\\n")
            print("Python's own")
        os.write(1, b"after\\n")
        """
    )
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines.count("solver stopped at 0") == 1
    assert {"something else", "Python's own"} <= set(lines)
    assert "Printed 2,000 times in all: solver stopped at 0" in lines
    assert len(lines) == 7


def test_a_library_that_floods_the_output_under_pythons_lock_never_waits():
    lines = output_of(
        """
        write = ctypes.PyDLL(None).write  # keeps Python's lock, so that no thread can read
        text = b"flood\\n" * 1_000_000
        with FoldedOutput(print):
            write(1, text, len(text))
            write(1, text, len(text))
        print("done")
        """
    )
    assert lines[0] == "flood"
    assert lines[-1] == "done"


def test_without_a_file_behind_the_output_nothing_is_redirected():
    lines = output_of(
        """
        import io
        real, sys.stdout = sys.stdout, io.StringIO()
        with FoldedOutput(print):
            print("kept")
            os.write(1, b"native\\n")
        sys.stdout, text = real, sys.stdout.getvalue()
        print(text.strip())
        """
    )
    assert lines == ["native", "kept"]


def test_only_the_thread_that_mutes_itself_is_muted(capsys):
    with contextlib.redirect_stdout(MutedThread(sys.stdout)):
        print("of the muted thread")
        other = threading.Thread(target=print, args=("of another thread",))
        other.start()
        other.join()
    print("afterwards")
    assert capsys.readouterr().out == "of another thread\nafterwards\n"
