"""Puts episodes together from consecutive steps of some environments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brax_viser.records.episode import Episode, Summary
from brax_viser.records.packet import Packet
from brax_viser.records.protocol import Layout, size_of, unpack

LinksOf = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Returns the link poses, float32 [L, 3] in m and [L, 4] wxyz, at a qpos, float [nq]."""

MOST_FALLEN = 4
"""Episodes that are kept of those that ended in a termination, besides the best and the worst: what
there is to learn from falls, they differ in."""

_NUMBERS = ("episode_length", "since_termination", "finished_length", "was_reset")
_STATES = ("qpos", "qvel", "link_pos", "link_rot")
_OF_STEPS = ("reward", "action", "ctrl", "act", "mocap_pos", "mocap_quat")


@dataclass(eq=False)
class _Track:
    """The episode that one environment is in."""

    last_step: int = -1  # batched step of its newest row
    num_steps: int = 0  # env steps trained when it began
    layout: Layout = ()
    rows: list[np.ndarray] = field(default_factory=list)  # [D] each; none if its reset wasn't seen


@dataclass(frozen=True, eq=False)
class _Finished:
    env: int
    num_steps: int
    seconds: float
    layout: Layout
    rows: np.ndarray  # [T, D]


class Window:
    """A run of consecutive steps, in which each of some environments finishes one episode.

    The first whole episode of each counts, however short: to wait for a number of whole episodes
    would favour those that end early. An environment that was reset within its own step, so that
    its last state was never seen, is left out.
    """

    def __init__(self, most_steps: int, most_envs: int, most_bytes: int):
        """Begins.

        Args:
            most_steps: steps after which the window is finished in any case.
            most_envs: most environments of each process, in the order in which they are drawn.
            most_bytes: memory for the steps, of each process; there are fewer environments if their
                steps need more.
        """
        self._most_steps, self._most_envs = most_steps, most_envs
        self._most_bytes = most_bytes
        self._wanted: dict[int, frozenset[int]] = {}  # by process
        self._tracks: dict[int, _Track] = {}
        self._finished: dict[int, _Finished] = {}
        self._first_step: int | None = None
        self._steps = 0

    @property
    def finished(self) -> bool:
        """Whether each environment has finished an episode, or enough steps have been taken."""
        if self._steps >= self._most_steps:
            return True
        wanted = [env for envs in self._wanted.values() for env in envs]
        return bool(wanted) and all(env in self._finished for env in wanted)

    def receive(self, packet: Packet, num_steps: int, seconds: float) -> None:
        """Takes one step of one device.

        Args:
            packet: with coordinates; others are ignored.
            num_steps: env steps trained, over all environments, before this step.
            seconds: s of the training's clock.
        """
        if packet.ranked or not any(name == "before/qpos" for name, _ in packet.layout):
            return
        if self._first_step is None:
            self._first_step = packet.env_steps
        self._steps = max(self._steps, packet.env_steps - self._first_step + 1)
        if packet.process not in self._wanted:
            fit = self._most_bytes // (4 * size_of(packet.layout) * self._most_steps)
            most = min(max(fit, 1), self._most_envs)
            self._wanted[packet.process] = frozenset(packet.drawn[:most].tolist())
        wanted = self._wanted[packet.process]
        places = [
            (row, env)
            for row, env in enumerate(packet.env_index.tolist())
            if env in wanted and env not in self._finished
        ]
        if not places:
            return
        rows = packet.split()[0][[row for row, _ in places]]  # a copy, of these alone
        for row, numbers, (_, env) in zip(rows, _numbers(packet.layout, rows), places, strict=True):
            self._add(env, packet, row, numbers, num_steps, seconds)

    def _add(
        self,
        env: int,
        packet: Packet,
        row: np.ndarray,
        numbers: Sequence[int],
        num_steps: int,
        seconds: float,
    ) -> None:
        track = self._tracks.setdefault(env, _Track())
        if packet.env_steps == track.last_step:
            return  # sent twice, as happens while the training is held
        episode_length, since_termination, finished_length, was_reset = numbers
        known = len(track.rows)
        follows = packet.env_steps == track.last_step + 1 and packet.layout == track.layout
        begins = episode_length == 1
        # A time limit shows only in the next episode's first step. A reset of the whole rollout
        # begins an episode as well, but ends none.
        if known and follows and begins and finished_length == known:
            self._finish(env, track, seconds)
            return
        if begins or not (known and follows and episode_length == known + 1):
            track.rows, track.num_steps, track.layout = [], num_steps, packet.layout
        track.last_step = packet.env_steps
        if was_reset or not (begins or track.rows):
            return
        track.rows.append(row)
        if since_termination == 0:
            self._finish(env, track, seconds)

    def _finish(self, env: int, track: _Track, seconds: float) -> None:
        rows = np.stack(track.rows)
        self._finished[env] = _Finished(env, track.num_steps, seconds, track.layout, rows)
        track.rows = []

    def episodes(
        self, dt: float, links_of: LinksOf, models: Mapping[int, Mapping[str, np.ndarray]]
    ) -> list[Episode]:
        """Returns the episodes to keep, see `choose`.

        Args:
            dt: s of robot time per step.
            links_of: for the poses of resets.
            models: by environment, the fields in which its model differs.
        """
        finished = list(self._finished.values())
        if not finished:
            return []
        recording = min(f.num_steps for f in finished)
        episodes = [_episode(f, recording, dt, links_of, models.get(f.env, {})) for f in finished]
        return choose(episodes, np.random.default_rng(recording))

    def metrics(self) -> dict[str, float]:
        """Returns what the environments keep in `state.metrics`, by name: sums over each episode,
        means over all that have finished, those that are not kept among them."""
        sums: dict[str, list[float]] = {}
        for finished in self._finished.values():
            for name, values in unpack(finished.layout, finished.rows).items():
                if name.startswith("metrics/"):
                    total = float(values.sum(dtype=np.float64))
                    sums.setdefault(name.removeprefix("metrics/"), []).append(total)
        return {name: float(np.mean(totals)) for name, totals in sums.items()}


def choose(episodes: list[Episode], rng: np.random.Generator) -> list[Episode]:
    """Returns the best, the worst, up to `MOST_FALLEN` that fell and one at random, if there are
    that many, with `kept_as` set; in the order of their environments."""
    summaries = [episode.summary for episode in episodes]
    order = sorted(range(len(episodes)), key=lambda i: _rank(summaries[i]))
    kept: dict[int, list[str]] = {order[-1]: ["best"]}
    kept.setdefault(order[0], []).append("worst")
    fallen = [i for i in order if summaries[i].ended == "terminated"]
    for why, among, most in (("fell", fallen, MOST_FALLEN), ("random", order, 1)):
        left = [i for i in among if i not in kept] or among[:1]
        for i in rng.permutation(left)[:most].tolist():
            kept.setdefault(i, []).append(why)
    return [
        replace(episodes[i], summary=replace(summaries[i], kept_as=tuple(why)))
        for i, why in sorted(kept.items(), key=lambda item: summaries[item[0]].env)
    ]


def _rank(summary: Summary) -> float:
    """Returns the return; what is not a number ranks below all."""
    return summary.episode_return if np.isfinite(summary.episode_return) else -np.inf


def _numbers(layout: Layout, rows: np.ndarray) -> list[list[int]]:
    """Returns the values of `_NUMBERS` in each of the rows."""
    fields = unpack(layout, rows)
    nothing = np.zeros(len(rows), np.float32)
    columns = [fields.get(name, nothing) for name in _NUMBERS]
    return np.stack(columns, axis=1).astype(int).tolist()


def _episode(
    finished: _Finished,
    recording: int,
    dt: float,
    links_of: LinksOf,
    model: Mapping[str, np.ndarray],
) -> Episode:
    fields = unpack(finished.layout, finished.rows)
    pos, rot = links_of(fields["before/qpos"][0])
    first = {
        "qpos": fields["before/qpos"][0],
        "qvel": fields["before/qvel"][0],
        "link_pos": pos,
        "link_rot": rot,
    }
    states = {name: np.concatenate([first[name][None], fields[name]]) for name in _STATES}
    steps = {
        name: x.copy()
        for name, x in fields.items()
        if name in _OF_STEPS or name.startswith("metrics/")
    }
    ended = "terminated" if fields["since_termination"][-1] == 0 else "truncated"
    if not fields["finite"][-1]:
        ended = "nonfinite"
    summary = Summary(
        recording=recording,
        env=finished.env,
        num_steps=finished.num_steps,
        seconds=finished.seconds,
        length=len(finished.rows),
        episode_return=float(fields["episode_return"][-1]),
        ended=ended,
        kept_as=(),
    )
    return Episode(summary, dt, **states, steps=steps, model=dict(model))
