"""A wrapped script prints what the bare one prints, with its own warnings, log and progress bar."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

SCRIPT = """
import logging, sys, warnings

import jax
from brax import envs

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s %(message)s")
logging.getLogger("jax").setLevel(logging.ERROR)
logging.getLogger("asyncio").setLevel(logging.WARNING)  # in its debug mode it tells of each server
warnings.filterwarnings("error", message="mine too")
from examples.own_ppo import make_train
from tests.toy import Toy

streams, before = (sys.stdout, sys.stderr), list(warnings.filters)
root = logging.getLogger()
kept = root.level, list(root.handlers), logging.getLogger("jax").level, logging.root.disabled
env = Toy()
if sys.argv[1] == "watched":
    from brax_viser import Viewer, VisualizedEnv

    env = VisualizedEnv(env, viewer=Viewer(port=0))
train = jax.jit(make_train(env, num_envs=4, num_updates=2, num_steps=3))
for part in range(3):
    print("part", part)
    print(f"\\r{part + 1}/3", end="", file=sys.stderr)
    warnings.warn(f"warned of {part}")
    logging.getLogger("mine").info("reward %.9f", train(jax.random.PRNGKey(part))[1].sum())
try:
    warnings.warn("mine too")
except UserWarning:
    print("raised")
assert (sys.stdout, sys.stderr) == streams
after = root.level, list(root.handlers), logging.getLogger("jax").level, logging.root.disabled
assert after == kept
print([one for one in warnings.filters if one not in before])
foreign = [name for name in root.manager.loggerDict if name.split(".")[0] == "brax_viser"]
print(*[name for name in foreign if logging.getLogger(name).handlers], file=sys.stderr)
if sys.argv[1] == "watched":
    env.viewer.close()
"""


def run(how: str) -> tuple[list[str], list[str]]:
    """Returns the lines of stdout and of stderr."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONASYNCIODEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_wrapped_script_prints_what_the_bare_one_does_and_one_line_of_ours():
    (*bare, filters), stderr = run("bare")
    (*watched, more), other = run("watched")
    assert stderr == other
    ours = [line for line in watched if line.startswith("brax_viser: ")]
    assert len(ours) == 1 and "http://127.0.0.1:" in ours[0]
    assert [line for line in watched if line not in ours] == bare
    # One for what viser says of pages that send nonsense: Python would keep the text of each.
    assert filters == "[]" and re.fullmatch(
        r"\[\('ignore', re\.compile\([^)]*viser[^)]*\).*?\)\]", more
    )
