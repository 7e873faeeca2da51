"""Writes files so that none is ever half there, and packs arrays into them. Files are local or,
through etils' epath, in gs:// and s3://."""

import contextlib
import io
import os
import zipfile
from collections.abc import Mapping

import numpy as np
from etils import epath

UNFINISHED = ".part"
"""Ending of the names of files that are being written. These names begin with a dot."""


class Damaged(ValueError):
    """A file's contents are not those that were written."""


def path_of(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a path that still holds when the process changes its working directory."""
    given = epath.Path(path).expanduser()
    return given.resolve() if is_local(given) else given


def is_local(path: epath.Path) -> bool:
    """Whether a path belongs to this machine's file system."""
    return "://" not in os.fspath(path)


def write(path: epath.Path, data: bytes) -> None:
    """Writes a file that is there as a whole or not at all, even if the process or the machine
    stops; an older file of that name is replaced.

    Raises:
        OSError: it cannot be written. Other stores than the local one raise their own errors.
    """
    if not is_local(path):  # an object appears when it has been uploaded as a whole
        path.write_bytes(data)
        return
    unfinished = path.parent / f".{path.name}{UNFINISHED}"
    try:
        _write_through(unfinished, data, "wb")
        os.replace(unfinished, path)
    except BaseException:
        _remove_if_possible(unfinished)
        raise
    _sync_folder(path.parent)


def create(path: epath.Path, data: bytes) -> bool:
    """Writes a file that must not exist yet. Of several processes that try, only one succeeds.

    Returns:
        Whether this one has: False if the file exists.

    Raises:
        OSError: as for `write`.
    """
    if not is_local(path):  # stores have no exclusive creation: the last writer wins
        if path.exists():
            return False
        path.write_bytes(data)
        return path.read_bytes() == data
    try:
        _write_through(path, data, "xb")
    except FileExistsError:
        return False
    except BaseException:
        _remove_if_possible(path)
        raise
    _sync_folder(path.parent)
    return True


def read(path: epath.Path, key: object) -> bytes:
    """Returns the bytes of a file.

    Args:
        path: the file.
        key: what users know it by.

    Raises:
        KeyError: there is no such file.
        ValueError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KeyError(key) from None
    except Exception as error:  # of the disk, or of any package that reaches another store
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_arrays(path: epath.Path, key: object) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file that `pack` made.

    Args:
        path: the file.
        key: what users know it by.

    Raises:
        KeyError: there is no such file.
        Damaged: it is not as it was made.
        ValueError: it cannot be read.
    """
    data = read(path, key)
    try:
        return unpack(data)
    except Damaged as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def remove_unfinished(folder: epath.Path) -> None:
    """Removes what a killed process left behind in a local folder that belongs to this process."""
    if is_local(folder) and folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name.endswith(UNFINISHED):
                path.unlink(missing_ok=True)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns arrays as the bytes of an .npz file, by any names.

    Raises:
        ValueError: an array has objects in it.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        archive.comment = _count(arrays)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file that `pack` made, checked against their checksums.

    Raises:
        Damaged: it is not as it was made.
    """
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                member = io.BytesIO(archive.read(name))
                array = np.lib.format.read_array(member, allow_pickle=False)
                found[name.removesuffix(".npy")] = array
            sound = archive.comment == _count(found)  # a damaged list of members may be too short
    except Exception as error:  # damage shows in many ways
        raise Damaged(str(error) or type(error).__name__) from error
    if not sound:
        raise Damaged("arrays are missing")
    return found


def _count(arrays: Mapping[str, np.ndarray]) -> bytes:
    return b"%d" % len(arrays)


def _write_through(path: epath.Path, data: bytes, mode: str) -> None:
    with open(path, mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: epath.Path) -> None:
    """Makes a new name survive a power failure, where the system can open folders."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove_if_possible(path: epath.Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here says why
        os.unlink(path)
