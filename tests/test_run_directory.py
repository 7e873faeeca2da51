"""A training's run directory loses nothing that could be kept, and never disturbs the training."""

import errno
import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import mujoco
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from brax_viser.records.environment import Limit
from brax_viser.records.episode import Episode
from brax_viser.runs import files, folder, layout, reader
from brax_viser.runs.folder import RunFolder
from brax_viser.runs.memory import size_of
from brax_viser.runs.reader import open_run
from tests.episodes import episode, run_info, written

EPISODES = layout.EPISODES


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(folder, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(reader, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # subprocesses do wait for the disk


def wait_for(condition, seconds: float = 20.0) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it has not come true")


def recordings_in(run) -> list[int]:
    return sorted({summary.recording for summary in run.summaries()})


def assert_same(one: Episode, other: Episode) -> None:
    assert one.summary == other.summary
    assert one.dt == other.dt
    mine = {"qpos": one.qpos, "qvel": one.qvel, "pos": one.link_pos, "rot": one.link_rot}
    theirs = {"qpos": other.qpos, "qvel": other.qvel, "pos": other.link_pos, "rot": other.link_rot}
    for a, b in ((mine, theirs), (one.steps, other.steps), (one.model, other.model)):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert a[name].shape == b[name].shape
            assert a[name].tobytes() == b[name].tobytes()


# What was written comes back.


def test_episodes_come_back_bit_by_bit(tmp_path):
    sound, odd = episode(100), episode(200, env=12)
    odd.qpos.view(np.uint32)[0, 0] = 0x7FC12345  # a NaN of its own
    odd.qvel[1] = -np.inf
    odd.model["geom_size"] = np.ones((2, 3), np.float32)
    odd.model["geom_matid"] = np.array([3, -1], np.int32)
    odd.steps["metrics/../Größe"] = np.zeros((5, 0), np.float32)
    run = RunFolder(tmp_path / "run", run_info())
    run.add([sound, odd])
    for opened in (run, run.close() and run, open_run(tmp_path / "run")):
        assert opened.summaries() == (sound.summary, odd.summary)
        for one in (sound, odd):
            assert_same(opened.get(one.summary.key), one)
        with pytest.raises(KeyError):
            opened.get("000000000000300-env0")


def test_policies_curves_and_the_training_come_back(tmp_path):
    settings = {"num_evals": np.int64(3), "factory": run_info, "sizes": (8, 8), "rate": 3e-4}
    limits = (Limit("pole angle", "qpos", 1, -0.2, None, "rad", (0.0, 0.0, 0.6)),)
    info = run_info(trainer=None, settings=settings, limits=limits)
    run = RunFolder(tmp_path, info)
    policies = {n: {"0/mean": np.float32([n, 1]), "1/params/bias": np.arange(n)} for n in (7, 3)}
    for num_steps, params in policies.items():
        run.add_policy(num_steps, params)
    curves = {"eval/reward": np.arange(6.0).reshape(3, 2), "file": np.zeros((3, 0))}
    run.set_curves({"old": np.zeros((3, 1))})
    wait_for(lambda: not run._has_work())
    run.set_curves(curves)
    for opened in (run, run.close() and run, open_run(tmp_path)):
        assert opened.policies() == (3, 7)
        for num_steps, params in policies.items():
            found = opened.policy(num_steps)
            assert {n: x.tolist() for n, x in found.items()} == {
                n: x.tolist() for n, x in params.items()
            }
        with pytest.raises(KeyError):
            opened.policy(4)
        found = opened.curves()
        assert {n: x.tolist() for n, x in found.items()} == {
            n: x.tolist() for n, x in curves.items()
        }
    found = open_run(tmp_path).info
    assert (found.env, found.backend, found.dt, found.num_envs) == ("Pole", "mjx", 0.02, 8)
    assert (found.trainer, found.started) == (None, 1.7e9)
    assert found.limits == limits
    assert found.settings == {"num_evals": 3, "factory": "run_info", "sizes": [8, 8], "rate": 3e-4}
    assert layout.model_bytes(found.mj_model) == layout.model_bytes(info.mj_model)


def test_where_the_training_was_held_comes_back_and_older_directories_open_without(tmp_path):
    run = RunFolder(tmp_path, run_info())
    run.add([episode(1)])
    run.set_holds([30, 10])
    wait_for(lambda: not run._has_work())
    assert open_run(tmp_path).holds() == (10, 30)
    run.set_holds([10, 30, 50])
    run.add([episode(2)])
    assert run.close()
    assert open_run(tmp_path).holds() == (10, 30, 50)
    index = json.loads((tmp_path / "index.json").read_text())
    del index["holds"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    older = open_run(tmp_path)
    assert older.holds() == () and recordings_in(older) == [1, 2]


def test_the_model_is_that_of_the_beginning_and_numpy_alone_reads_its_arrays(tmp_path, monkeypatch):
    info, changed, write = run_info(), threading.Event(), files.write
    monkeypatch.setattr(files, "write", lambda *args: changed.wait() and write(*args))
    run = RunFolder(tmp_path, info)
    info.mj_model.geom_size[:] = 9
    changed.set()
    assert run.close()
    assert open_run(tmp_path).info.mj_model.geom_size.max() < 9
    with np.load(tmp_path / layout.MODEL_ARRAYS, allow_pickle=False) as model:
        assert model["geom_size"].shape == (2, 3)
        assert model["geom_size"].max() < 9
        names = model["names"].tobytes().split(b"\0")
        assert {b"cart", b"pole"} < set(names)


def test_a_reader_needs_neither_jax_nor_viser(tmp_path):
    tmp_path /= "run"
    written(tmp_path, [1])
    code = (
        "import sys; from brax_viser.runs.reader import open_run; import brax_viser.runs.folder; "
        "run = open_run(sys.argv[1]); run.get(run.summaries()[0].key); "
        "assert not {'jax', 'viser', 'brax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_a_list_of_many_episodes_opens_none_of_them(tmp_path, monkeypatch):
    tmp_path /= "run"
    written(tmp_path, range(20))
    opened = []
    monkeypatch.setattr(layout, "read_episode", opened.append)
    run = open_run(tmp_path)
    assert len(run.summaries()) == 40
    assert opened == []


def test_a_reader_sees_what_a_running_training_adds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running = RunFolder("run", run_info())
    wait_for(lambda: (tmp_path / "run" / layout.MODEL).exists())
    run = open_run("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    versions = [run.version]
    assert run.summaries() == ()
    for i in (10, 20):
        running.add([episode(i)])
        wait_for(lambda: run.version != versions[-1])
        versions.append(run.version)
        assert run.summaries()[-1] == episode(i).summary
    assert running.close()
    assert run.version == versions[-1]
    assert not list(Path().iterdir())


# Bounds.


def test_the_directory_stays_within_its_bytes_and_is_thinned_evenly(tmp_path):
    most = 400_000
    run = RunFolder(tmp_path, run_info(), max_bytes=most)
    for i in range(40):
        run.add([episode(i, env, episode_return=-abs(i - 23)) for env in range(2)])
        run.add_policy(i, {"w": np.zeros(1000)})
        wait_for(lambda: not run._has_work())
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) <= most
    assert run.close()
    for opened in (run, open_run(tmp_path)):
        recordings = recordings_in(opened)
        assert {0, 23, 39} < set(recordings)
        assert np.diff(recordings).max() <= 3 * 39 / (len(recordings) - 1)
        assert {0, 23, 39} <= set(opened.policies())
        assert len(opened.policies()) < 10
        for summary in opened.summaries():
            opened.get(summary.key)
    assert len(list((tmp_path / EPISODES).glob("*.npz"))) == len(run.summaries())
    assert len(list((tmp_path / layout.POLICIES).glob("*.npz"))) == len(run.policies())


def test_adding_never_waits_for_a_slow_disk_and_what_waits_is_bounded(
    tmp_path, monkeypatch, caplog
):
    goes_on = threading.Event()
    write = files.write
    monkeypatch.setattr(files, "write", lambda *args: goes_on.wait() and write(*args))
    monkeypatch.setattr(folder, "MEMORY_BYTES", 5 * size_of(episode(0)))
    run = RunFolder(tmp_path, run_info())
    for i in range(50):
        run.add([episode(i)])
        run.add_policy(i, {"w": np.zeros(100)})
        run.set_curves({"a": np.full((3, 1), i)})
    assert len(run.summaries()) == 5
    assert run.summaries()[-1].recording == 49
    assert run.get(run.summaries()[-1].key)
    assert run.problem is not None
    assert "45 recordings were dropped" in run.problem
    assert not run.close(timeout=0.05)
    goes_on.set()
    assert run.close()
    assert len(recordings_in(open_run(tmp_path))) == 5
    assert open_run(tmp_path).curves()["a"].tolist() == [[49], [49], [49]]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_arrays_that_cannot_be_stored_are_left_out_and_the_rest_is_kept(tmp_path):
    run = RunFolder(tmp_path, run_info())
    broken = episode(1)
    broken.steps["info"] = np.array([object()])
    run.add([broken])
    run.add([episode(2)])
    run.add_policy(5, {"w": np.array([object()])})
    assert run.close()
    assert run.problem is not None
    assert "could not be kept" in run.problem
    assert recordings_in(run) == recordings_in(open_run(tmp_path)) == [2]


@pytest.mark.parametrize("value", [0, -1])
def test_a_directory_without_room_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=str(value)):
        RunFolder(tmp_path, run_info(), max_bytes=value)


# Kills.

KILLED = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from brax_viser.runs import files
from brax_viser.runs.folder import RunFolder
from tests.episodes import episode, run_info

class Half:
    def __init__(self, path, mode):
        self._file = open(path, mode)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self._file.close()
    def __getattr__(self, name):
        return getattr(self._file, name)
    def write(self, data):
        global left
        left -= 1
        if left == 0:
            self._file.write(data[:len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self._file.write(data)

def train(path, max_bytes):
    run = RunFolder(path, run_info(), max_bytes=max_bytes)
    for i in range(6):
        run.add([episode(i, env, length=100) for env in range(2)])
        run.add_policy(i, {"w": np.full(2000, i)})
        run.set_curves({"a": episode(i).qpos[:3]})
        while run._has_work():
            threading.Event().wait(0.001)
        Path(path + ".written").write_text(str(i))

for left in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        files.open = Half
        train(f"{sys.argv[1]}/{left}", int(sys.argv[2]))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


@pytest.mark.parametrize(
    ("max_bytes", "kills"),
    [(10**9, range(1, 15)), (230_000, range(24, 34))],  # the second one drops recordings, too
)
def test_after_a_kill_in_any_write_all_that_was_written_opens(tmp_path, max_bytes, kills):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(max_bytes), *map(str, kills)]
    subprocess.run(command, check=True, timeout=100)
    for kill in kills:
        path = tmp_path / str(kill)
        if kill <= 4:  # run.json, index.json, model.npz, model.mjb
            with pytest.raises(ValueError, match="damaged" if kill == 1 else "has no model"):
                open_run(path)
            continue
        run = open_run(path)
        for summary in run.summaries():
            assert_same(run.get(summary.key), episode(summary.recording, summary.env, length=100))
        for num_steps in run.policies():
            assert run.policy(num_steps)["w"].tolist() == 2000 * [num_steps]
        if not path.with_suffix(".written").exists():
            continue
        last = int(path.with_suffix(".written").read_text())
        assert run.curves()["a"].tobytes() in [
            episode(i).qpos[:3].tobytes() for i in (last, last + 1)
        ]
        recordings = recordings_in(run)
        assert recordings[0] == 0
        assert last <= recordings[-1] <= last + 1
        assert last in run.policies()
        assert max_bytes < 10**9 or recordings[: last + 1] == list(range(last + 1))
    assert max_bytes == 10**9 or recordings != list(range(last + 1))


def test_what_a_kill_left_half_written_is_ignored_and_removed(tmp_path):
    half = tmp_path / EPISODES / f".000000000000001-env0.npz{files.UNFINISHED}"
    half.parent.mkdir()
    half.write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path, run_info()).close()
    assert not half.exists()
    half.write_bytes(b"half")
    assert recordings_in(open_run(tmp_path)) == []
    assert (tmp_path / "notes.txt").exists()


# Disks that fail.


def test_a_full_disk_is_reported_and_waiting_episodes_are_written_once_there_is_room(
    tmp_path, monkeypatch, caplog
):
    run = RunFolder(tmp_path, run_info())
    run.add([episode(1)])
    wait_for(lambda: not run._has_work())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        for i in (2, 3):
            run.add([episode(i)])
            run.add_policy(i, {})
        wait_for(lambda: run.problem)
        assert "No space left on device" in run.problem
        assert str(tmp_path) in run.problem
        assert recordings_in(run) == [1, 2, 3]
        assert_same(run.get(episode(3).summary.key), episode(3))
        assert recordings_in(open_run(tmp_path)) == [1]
    assert run.close()
    assert run.problem is None
    assert recordings_in(open_run(tmp_path)) == [1, 2, 3]
    assert open_run(tmp_path).policies() == (2, 3)
    assert len(caplog.records) == 1
    assert not list(tmp_path.rglob(f"*{files.UNFINISHED}"))


def test_closing_does_not_wait_for_a_disk_that_stays_full(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, run_info())
    monkeypatch.setattr(folder, "RETRY_SECONDS", 1000)
    monkeypatch.setattr(files, "_write_through", lambda *_: (_ for _ in ()).throw(OSError("full")))
    run.add([episode(1)])
    wait_for(lambda: run.problem)
    assert not run.close(timeout=20)
    assert not run._thread.is_alive()
    run.add([episode(2)])
    run.add_policy(2, {})
    run.set_curves({})
    assert recordings_in(run) == [1]


MOUNTED = """
set -e
mount -t tmpfs -o size=3m none "$1"
exec "$2" -c "$3" "$1"
"""

FULL = """
import os, shutil, sys, threading
from pathlib import Path
from brax_viser.runs import folder
from brax_viser.runs.folder import RunFolder
from brax_viser.runs.reader import open_run
from tests.episodes import episode, run_info
folder.RETRY_SECONDS = 0.02
disk = Path(sys.argv[1])
def wait_for(condition):
    while not condition():
        threading.Event().wait(0.01)
(disk / "other").write_bytes(bytes(2_000_000))
run = RunFolder(disk / "run", run_info())
for i in range(40):
    run.add([episode(i, length=500)])
wait_for(lambda: run.problem)
assert "No space left" in run.problem, run.problem
there = open_run(disk / "run")
assert 0 < len(there.summaries()) < 40
[there.get(s.key) for s in there.summaries()]
os.remove(disk / "other")
wait_for(lambda: not run.problem and not run._has_work())
assert len(open_run(disk / "run").summaries()) == 40
assert os.system(f"mount -o remount,ro {disk}") == 0
run.add([episode(40)])
wait_for(lambda: run.problem)
assert "Read-only" in run.problem, run.problem
try:
    RunFolder(disk / "second", run_info())
except ValueError as error:
    assert "Read-only" in str(error), error
else:
    raise AssertionError
assert os.system(f"mount -o remount,rw {disk}") == 0
assert run.close() and run.problem is None
assert len(open_run(disk / "run").summaries()) == 41
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="mounting a small disk is not allowed",
)
def test_a_disk_that_is_full_or_read_only_for_a_while_costs_nothing(tmp_path):
    command = ["unshare", "-m", "sh", "-c", MOUNTED, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_vanished_directory_is_created_again(tmp_path, caplog):
    path = tmp_path / "run"
    run = RunFolder(path, run_info())
    run.add([episode(1)])
    run.set_curves({"a": np.zeros((3, 1))})
    run.add_policy(1, {})
    wait_for(lambda: not run._has_work())
    shutil.rmtree(path)
    run.add([episode(2)])
    assert run.close()
    assert recordings_in(run) == recordings_in(open_run(path)) == [2]
    assert open_run(path).curves().keys() == {"a"}
    assert run.policies() == open_run(path).policies() == ()
    assert "vanished" in caplog.text


def test_a_directory_that_turns_into_a_file_is_reported_and_written_when_it_is_back(tmp_path):
    run = RunFolder(tmp_path / "run", run_info())
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").write_text("in the way")
    run.add([episode(1)])
    wait_for(lambda: run.problem)
    assert "not a directory" in run.problem
    (tmp_path / "run").unlink()
    (tmp_path / "away").rename(tmp_path / "run")
    assert run.close()
    assert run.problem is None
    assert recordings_in(open_run(tmp_path / "run")) == [1]


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_as_run_directory_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"{place} cannot be the run directory: it is not a dir"):
        RunFolder(tmp_path / place, run_info())
    with pytest.raises(ValueError, match=place):
        open_run(tmp_path / place)


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "_write_through", denied)
    with pytest.raises(ValueError, match="run directory: Permission denied"):
        RunFolder(tmp_path, run_info())


# One training, one directory.


def test_the_directory_of_another_training_is_refused_by_name_and_left_as_it_is(tmp_path):
    tmp_path /= "run"
    written(tmp_path, [1, 2])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match=r"another training: Pole \(mjx\) with PPO, begun 2023-11"):
        RunFolder(tmp_path, run_info("Ant"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    (tmp_path / layout.RUN).unlink()
    with pytest.raises(ValueError, match=r"it has episodes, but no run\.json"):
        RunFolder(tmp_path, run_info("Ant"))


def test_only_one_of_several_simultaneous_trainings_gets_the_directory(tmp_path):
    for round_ in range(5):
        barrier, runs, refused = threading.Barrier(6), [], []

        def start(name, path=tmp_path / str(round_), barrier=barrier, runs=runs, refused=refused):
            info = run_info(name)
            barrier.wait()
            try:
                runs.append(RunFolder(path, info))
            except ValueError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=start, args=[f"Env{i}"]) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(runs) == 1
        assert len(refused) == 5
        runs[0].add([episode(1)])
        assert runs[0].close()
        assert open_run(tmp_path / str(round_)).info.env == runs[0].info.env


def test_a_directory_that_is_given_to_another_training_meanwhile_is_left_to_it(tmp_path):
    path = tmp_path / "run"
    first = RunFolder(path, run_info("First"))
    first.add([episode(1)])
    wait_for(lambda: not first._has_work())
    shutil.rmtree(path)
    second = RunFolder(path, run_info("Second"))
    first.add([episode(2)])
    second.add([episode(3)])
    wait_for(lambda: first.problem)
    assert "holds another training by now: Second" in first.problem
    assert second.close()
    assert not first.close()
    assert recordings_in(open_run(path)) == [3]


# Damage.


def test_a_truncated_episode_is_left_out_and_named_once(tmp_path, caplog):
    tmp_path /= "run"
    written(tmp_path, [1, 2])
    path = tmp_path / layout.episode_file(episode(1).summary.key)
    path.write_bytes(path.read_bytes()[:-20])
    run = open_run(tmp_path)
    assert len(run.summaries()) == 3
    assert len(run.summaries()) == 3
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(ValueError, match="damaged"):
        run.get(episode(1).summary.key)
    assert len(caplog.records) == 1


def test_damage_that_only_the_contents_show_is_found_wherever_it_is(tmp_path, caplog):
    tmp_path /= "run"
    written(tmp_path, [1, 2])
    key = episode(1).summary.key
    path = tmp_path / layout.episode_file(key)
    sound = path.read_bytes()
    arrays = files.unpack(sound)
    for place in range(0, len(sound), 7):
        damaged = bytearray(sound)
        damaged[place] ^= 0x15
        try:  # a few bytes, such as dates, mean nothing
            assert {n: x.tobytes() for n, x in files.unpack(bytes(damaged)).items()} == {
                n: x.tobytes() for n, x in arrays.items()
            }
        except ValueError:
            continue
    place = sound.index(episode(1).qpos.tobytes()[:16])
    path.write_bytes(sound[:place] + b"\1" + sound[place + 1 :])
    run = open_run(tmp_path)
    version = run.version
    assert len(run.summaries()) == 4
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            run.get(key)
    assert run.version != version
    assert len(run.summaries()) == 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "index", [None, b"", b"{", b"[]", b'{"episodes": [{}]}', b'{"episodes": []}']
)
def test_a_missing_or_damaged_list_is_made_again_from_the_episodes(tmp_path, index, caplog):
    tmp_path /= "run"
    written(tmp_path, [1, 2])
    before = open_run(tmp_path).summaries()
    path = tmp_path / layout.INDEX
    path.unlink() if index is None else path.write_bytes(index)
    bad = tmp_path / layout.episode_file(episode(2).summary.key)
    bad.write_bytes(b"damaged")
    run = open_run(tmp_path)
    assert run.summaries() == tuple(s for s in before if s != episode(2).summary)
    assert run.summaries()
    assert run.policies() == (1, 2)
    assert len(caplog.records) == 2


def test_an_episode_that_is_dropped_meanwhile_is_a_key_error(tmp_path):
    tmp_path /= "run"
    written(tmp_path, [1])
    run = open_run(tmp_path)
    (tmp_path / layout.episode_file(episode(1).summary.key)).unlink()
    with pytest.raises(KeyError):
        run.get(episode(1).summary.key)


def test_damaged_curves_and_policies_do_not_keep_the_rest_from_opening(tmp_path, caplog):
    run = RunFolder(tmp_path, run_info())
    run.set_curves({"a": np.zeros((3, 1))})
    run.add_policy(1, {"w": np.ones(4)})
    assert run.close()
    (tmp_path / layout.CURVES).write_bytes(b"PK")
    (tmp_path / layout.policy_file(1)).write_bytes(b"")
    opened = open_run(tmp_path)
    assert opened.curves() == opened.curves() == {}
    assert len(caplog.records) == 1
    assert opened.policies() == (1,)
    with pytest.raises(ValueError, match="damaged"):
        opened.policy(1)


def changed_run(path: Path, **changes) -> None:
    record = json.loads((path / layout.RUN).read_text())
    (path / layout.RUN).write_text(json.dumps(record | changes))


def test_what_cannot_be_opened_says_why_and_what_helps(tmp_path):
    path = tmp_path / "runs" / "run"
    written(path, [1])

    def refusal(place: Path = path) -> str:
        with pytest.raises(ValueError) as caught:
            open_run(place)
        return str(caught.value)

    assert "has no run.json" in refusal(tmp_path)
    assert f"Did you mean {path}?" in refusal(tmp_path / "runs")
    assert "has no run.json" in refusal(tmp_path / "nowhere")
    run, model = (path / layout.RUN).read_bytes(), (path / layout.MODEL).read_bytes()
    changed_run(path, format=2, versions={"brax_viser": "9.9"})
    assert "has format 2, of brax_viser 9.9" in refusal()
    assert "pip install --upgrade" in refusal()
    changed_run(path, format=1, versions={"brax_viser": "0.1", "mujoco": "2.3.4"})
    assert "pip install mujoco==2.3.4" in refusal()
    assert mujoco.__version__ in refusal()
    for text in ("", "{", "[]", "{}", '{"format": 1}', '{"format": "x"}', "\udcff"):
        (path / layout.RUN).write_bytes(text.encode(errors="surrogateescape"))
        assert "run.json is damaged" in refusal()
    (path / layout.RUN).write_bytes(run)
    for data in (b"", model[:-1], model[:-1] + bytes([model[-1] ^ 1])):
        (path / layout.MODEL).write_bytes(data)
        assert "model.mjb is damaged" in refusal()
    (path / layout.MODEL).unlink()
    assert "has no model.mjb" in refusal()


# Other stores.


@pytest.mark.parametrize(("scheme", "driver"), [("gs", "gcs"), ("s3", "s3")])
def test_directories_of_other_stores_are_written_and_read(scheme, driver, monkeypatch):
    place = f"{scheme}://bucket"

    class Bucket(MemoryFileSystem):
        protocol = (scheme, driver)
        store, pseudo_dirs = {}, [""]

        def __init__(self, **_):
            super().__init__()

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(path.removeprefix(f"{scheme}:/"))

    fsspec.register_implementation(driver, Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        run = RunFolder(f"{place}/run", run_info(), max_bytes=100_000)
        for i in range(30):
            run.add([episode(i)])
            run.add_policy(i, {"w": np.zeros(100)})
        run.set_curves({"a": np.zeros((3, 1))})
        assert run.close()
        assert run.problem is None
        assert "/bucket/run/run.json" in Bucket.store
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "ls", None)  # whose results other stores remember
            opened = open_run(f"{place}/run")
            assert recordings_in(opened) == recordings_in(run)
            assert len(opened.summaries()) < 30
            for summary in opened.summaries():
                assert_same(opened.get(summary.key), episode(summary.recording))
            assert opened.policies() == run.policies()
            assert opened.curves().keys() == {"a"}
        with pytest.raises(ValueError, match="another training: Pole"):
            RunFolder(f"{place}/run", run_info())
        with pytest.raises(ValueError, match=r"no run\.json"):
            open_run(f"{place}/elsewhere")
    finally:
        sys.modules["fsspec.registry"]._registry.pop(driver, None)
        backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_store_whose_package_is_missing_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"gs://bucket/run cannot be .*gcsfs"):
        RunFolder("gs://bucket/run", run_info())
