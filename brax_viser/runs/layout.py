"""Defines what the files of a run directory contain, as docs/run_directory.md describes them."""

import json
import sys
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mujoco
import numpy as np
from etils import epath

from brax_viser.records.environment import Limit
from brax_viser.records.episode import Episode, RunInfo, Summary
from brax_viser.runs import files
from brax_viser.runs.files import Damaged

FORMAT = 1
"""Version of the format. It grows when older releases could not read a directory any more."""

RUN, MODEL, MODEL_ARRAYS, CURVES = "run.json", "model.mjb", "model.npz", "curves.npz"
EPISODES, POLICIES, INDEX = "episodes", "policies", "index.json"
"""Names of the files and folders in a run directory."""

INDEX_BYTES = 300
"""Bytes that an episode takes in the index, at most."""

MOST_LETTERS = 2000
"""Letters that are kept of a setting that is not a plain value."""

_OWN = ("qpos", "qvel", "link_pos", "link_rot")
_COMMON = ("env", "backend", "dt", "num_envs", "trainer", "started")


def episode_file(key: str) -> str:
    """Returns where in a run directory an episode is."""
    return f"{EPISODES}/{key}.npz"


def policy_file(num_steps: int) -> str:
    """Returns where in a run directory a policy is."""
    return f"{POLICIES}/{num_steps:015d}.npz"


def run_record(info: RunInfo, model: bytes) -> dict[str, Any]:
    """Returns what run.json says of a training whose model.mjb is `model`."""
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        **{name: plain(getattr(info, name)) for name in _COMMON},
        "settings": plain(info.settings),
        "limits": [asdict(limit) for limit in info.limits],
        "versions": {"brax_viser": _own_version(), "mujoco": mujoco.__version__},
        "model": {"bytes": len(model), "crc32": zlib.crc32(model)},
    }


def parse_run(data: bytes) -> dict[str, Any]:
    """Returns what run.json says.

    Raises:
        ValueError: it is damaged, or of a newer format.
    """
    try:
        record = json.loads(data)
        version = int(record["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{RUN} is damaged: {error}") from error
    if version > FORMAT:
        by = record.get("versions", {}).get("brax_viser", "a newer version")
        raise ValueError(
            f"{RUN} has format {version}, of brax_viser {by}; the installed {_own_version()} reads "
            f"format {FORMAT}: `pip install --upgrade brax_viser`"
        )
    missing = [name for name in (*_COMMON, "id", "model", "versions") if name not in record]
    if missing:
        raise ValueError(f"{RUN} is damaged: it lacks {', '.join(missing)}")
    return record


def run_info(record: Mapping[str, Any], model: mujoco.MjModel) -> RunInfo:
    """Returns the description of a training, from what its run.json says.

    Raises:
        ValueError: that is damaged.
    """
    common = {name: record[name] for name in _COMMON}
    try:
        limits = tuple(map(Limit.of_record, record.get("limits", ())))  # older runs have none
    except TypeError as error:
        raise ValueError(f"{RUN} is damaged: {error}") from error
    return RunInfo(**common, mj_model=model, settings=record.get("settings", {}), limits=limits)


def model_bytes(model: mujoco.MjModel) -> bytes:
    """Returns a model in MuJoCo's binary format."""
    buffer = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def load_model(data: bytes, record: Mapping[str, Any]) -> mujoco.MjModel:
    """Returns the model of a training.

    Args:
        data: its model.mjb.
        record: what its run.json says.

    Raises:
        ValueError: it is damaged, or of another MuJoCo than the installed one.
    """
    written_by = record["versions"]["mujoco"]
    if written_by != mujoco.__version__:
        raise ValueError(
            f"{MODEL} was written by MuJoCo {written_by}, and only that version can read it; "
            f"installed is {mujoco.__version__}: `pip install mujoco=={written_by}`. All other "
            "files can be read without MuJoCo"
        )
    expected = record["model"]
    if len(data) != expected["bytes"] or zlib.crc32(data) != expected["crc32"]:
        raise ValueError(f"{MODEL} is damaged: it differs from what was written")
    return mujoco.MjModel.from_binary_path(MODEL, {MODEL: data})


def model_arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Returns all arrays of a model by their names in `mujoco.MjModel`; its texts, such as
    `names`, as uint8."""
    found = {}
    for name in dir(model):
        value = None if name.startswith("_") else getattr(model, name)
        if isinstance(value, bytes):
            found[name] = np.frombuffer(value, np.uint8)
        elif isinstance(value, np.ndarray):
            found[name] = value
    return found


def pack_episode(episode: Episode) -> bytes:
    """Returns the .npz file of an episode.

    Raises:
        ValueError, TypeError: its arrays or its summary are not of the types that they must have.
    """
    text = json.dumps(summary_record(episode.summary) | {"dt": float(episode.dt)})
    return files.pack(
        {
            "summary": np.array(text),
            **{name: getattr(episode, name) for name in _OWN},
            **{f"steps/{name}": array for name, array in episode.steps.items()},
            **{f"model/{name}": array for name, array in episode.model.items()},
        }
    )


def read_episode(path: epath.Path, key: str) -> Episode:
    """Reads the .npz file of an episode.

    Raises:
        KeyError: there is no such file.
        Damaged: it is not as it was written.
        ValueError: it cannot be read.
    """
    arrays = files.read_arrays(path, key)
    try:
        record = json.loads(str(arrays["summary"]))
        own = {name: arrays[name] for name in _OWN}
        summary, dt = parse_summary(record), float(record["dt"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} is not an episode: {error}") from error
    steps, model = (_below(arrays, folder) for folder in ("steps/", "model/"))
    return Episode(summary=summary, dt=dt, **own, steps=steps, model=model)


def summary_record(summary: Summary) -> dict[str, Any]:
    """Returns a summary as JSON keeps it."""
    return {
        "recording": int(summary.recording),
        "env": int(summary.env),
        "num_steps": int(summary.num_steps),
        "seconds": float(summary.seconds),
        "length": int(summary.length),
        "episode_return": float(summary.episode_return),
        "ended": str(summary.ended),
        "kept_as": list(summary.kept_as),
    }


def parse_summary(record: Mapping[str, Any]) -> Summary:
    """Returns a summary from what JSON kept of it.

    Raises:
        ValueError: something is missing or of the wrong type.
    """
    try:
        return Summary(
            recording=int(record["recording"]),
            env=int(record["env"]),
            num_steps=int(record["num_steps"]),
            seconds=float(record["seconds"]),
            length=int(record["length"]),
            episode_return=float(record["episode_return"]),
            ended=str(record["ended"]),
            kept_as=tuple(map(str, record["kept_as"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a summary is damaged: {error}") from error


@dataclass(frozen=True)
class Contents:
    """What a run directory has, and the bytes of each file."""

    episodes: Mapping[str, tuple[Summary, int]]  # by key, in the keys' order
    policies: Mapping[int, int]  # by env steps trained, ascending
    holds: tuple[int, ...] = ()  # env steps trained at which the training was held, ascending

    @classmethod
    def of(
        cls,
        episodes: Mapping[str, tuple[Summary, int]],
        policies: Mapping[int, int],
        holds: Iterable[int],
    ) -> "Contents":
        """Returns contents given in any order."""
        by_step = dict(sorted(policies.items()))
        return cls(dict(sorted(episodes.items())), by_step, tuple(sorted(holds)))


def pack_index(contents: Contents) -> bytes:
    """Returns index.json."""
    episodes = [
        {"key": key, **summary_record(summary), "bytes": size}
        for key, (summary, size) in contents.episodes.items()
    ]
    policies = [{"num_steps": n, "bytes": size} for n, size in contents.policies.items()]
    record = {"format": FORMAT, "episodes": episodes, "policies": policies}
    record["holds"] = list(contents.holds)
    return json.dumps(record).encode()


def parse_index(data: bytes) -> Contents:
    """Returns what index.json lists.

    Raises:
        ValueError: it is damaged.
    """
    try:
        record = json.loads(data)
        pairs = [(parse_summary(entry), int(entry["bytes"])) for entry in record["episodes"]]
        policies = {int(entry["num_steps"]): int(entry["bytes"]) for entry in record["policies"]}
        holds = [int(step) for step in record.get("holds", ())]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Contents.of({summary.key: (summary, size) for summary, size in pairs}, policies, holds)


def plain(value: Any) -> Any:
    """Returns a value in JSON's types. Values of other types become their names or texts."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return str(getattr(value, "__qualname__", None) or value)[:MOST_LETTERS]


def _below(arrays: Mapping[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    return {name[len(folder) :]: x for name, x in arrays.items() if name.startswith(folder)}


def _own_version() -> str:
    return str(sys.modules[__name__.partition(".")[0]].__version__)
