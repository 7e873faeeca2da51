"""Keeps compiled programs between starts of the command: the second one need not compile."""

import importlib.util
import logging
from typing import Any

import jax

from brax_viser.compat import JAX_KEEPS_CALLS
from brax_viser.host.starts import usual_path

log = logging.getLogger("brax_viser")

MOST_BYTES = 2**30
"""Size of the kept programs, beyond which the least recently used are removed. Those of a training
take some megabytes."""


def keep_programs() -> None:
    """Has JAX keep what it compiles, in the user's cache directory. Nothing is changed if the user
    has chosen a directory, or none, or if this JAX cannot keep programs that call the host."""
    config: Any = jax.config
    chosen = config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache
    if chosen or jax.__version_info__ < JAX_KEEPS_CALLS:
        return
    if importlib.util.find_spec("filelock") is None:  # which JAX needs to keep to a size
        return
    try:
        folder = usual_path().with_name("programs")
        # Users who could write there could have us run programs of theirs.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:
        log.debug("compiled programs are not kept: %s", error)
        return
    config.update("jax_compilation_cache_max_size", MOST_BYTES)
    config.update("jax_compilation_cache_dir", str(folder))
