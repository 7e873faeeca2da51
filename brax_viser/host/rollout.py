"""Keeps the state of one rollout, with the requests and grants of its devices."""

from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.control import Control
from brax_viser.host.pacing import Pacer
from brax_viser.host.selection import Choice, Selection
from brax_viser.host.steps import Steps
from brax_viser.records.decision import Decision, RowRequest
from brax_viser.records.protocol import Layout, Origin


@dataclass(eq=False)
class Rollout:
    """The state of one rollout, a training or an evaluation."""

    pacer: Pacer
    num_envs: int  # over all shards
    num_shards: int  # over all processes
    choice: Choice = field(default_factory=Choice)
    decisions: dict[int, Decision] = field(default_factory=dict)  # by shard: the last on given rows
    called: dict[int, float] = field(default_factory=dict)  # by shard: s, end of its last call
    grants: dict[int, "Grant"] = field(default_factory=dict)  # by shard: the last, in "every_step"
    rearmed: dict[int, int] = field(default_factory=dict)  # by shard: see `Findings`
    # By shard, where steps are seen as they are enqueued: see `Deliveries.looked_through`.
    nonfinite: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)  # likewise: `counted`
    unshown: set[int] = field(default_factory=set)  # shards whose last step is only recorded
    # Environments whose models' differences from the shared model are known.
    models: set[int] = field(default_factory=set)
    # By shard, where copies arrive later: float32 [N, D], the fields in which all models differ.
    model_rows: dict[int, np.ndarray] = field(default_factory=dict)
    steps: Steps = field(init=False)  # the pacer's, which counts them

    def __post_init__(self) -> None:
        self.steps = self.pacer.steps

    @property
    def envs_per_shard(self) -> int:
        return self.num_envs // self.num_shards

    def request(self, origin: Origin, shard: int, drawn: np.ndarray, *, alone: bool) -> RowRequest:
        """Returns the rows to ask of a device.

        Args:
            origin: the origin of its call.
            shard: the device, which may have called for the first time.
            drawn: int32 [K''], all drawn environments.
            alone: whether this process is the only one of the training.
        """
        last, known = self.decisions.get(shard), len(self.called)
        request = None if last is None else last.request
        if request is None or request.drawn is not drawn or request.known != known:
            here = drawn
            if not alone:
                shards = [*self.called, shard]
                here = drawn[np.isin(drawn // origin.num_envs, shards)]
            request = RowRequest.of(origin, shard, drawn, here, known)
        return request


@dataclass(eq=False)
class Grant:
    """A standing answer: the next step may be pushed like the last one.

    It is reused for `callbacks.GRANT_SECONDS` while the inputs kept here stay the same. Each call
    follows a step of physics that has evicted our data from the processor's caches: Python then
    takes three times as long as in a loop, so every line counts.
    """

    request: RowRequest
    layout: Layout
    answer: np.ndarray  # int32 [4 + K]
    rows: bytes  # row indices as in the push's header
    until: float  # s
    control: Control
    selection: Selection
    selected_env: int | None
    spent: float = 0.0  # s, not yet added to the meter; likewise the next two
    nbytes: int = 0
    frames: int = 0
