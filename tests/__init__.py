"""Has the processes of a test run share the programs that they compile.

Each file of tests drops its programs when it ends, and subprocesses begin with none, so JAX keeps
them in a folder of this run. It never keeps programs that call Python functions, as watched steps
do. It reads these variables when it is imported, so they are set before everything else.
"""

import atexit
import os
import shutil
import tempfile

FOLDER = "JAX_COMPILATION_CACHE_DIR"

if FOLDER not in os.environ:  # else the process that started this one has set it
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="brax-viser-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
