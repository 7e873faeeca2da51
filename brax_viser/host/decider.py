"""Decides, on XLA's threads, which steps and environments a device must push."""

from collections.abc import Callable, Sequence

import numpy as np

from brax_viser.host.decide import Drawn, decide, wish
from brax_viser.host.findings import Finding, fields_of
from brax_viser.host.pacing import Pacer
from brax_viser.host.rollout import Rollout
from brax_viser.host.selection import Ranking
from brax_viser.host.source import Source
from brax_viser.host.state import IDLE_SECONDS, SharedState
from brax_viser.records.decision import Decision
from brax_viser.records.environment import Environment
from brax_viser.records.grid import Grid
from brax_viser.records.protocol import FOREVER, FRESH, Origin
from brax_viser.records.trainer_call import TrainerCall


class Decider(Source):
    """Decides for one `VisualizedEnv`, while it is traced and while it runs. Both ways in which a
    device calls the host share it."""

    def __init__(
        self,
        shared: SharedState,
        adapter: Environment,
        grid: Grid,
        role: str | None,
        on_new_training: Callable[["Decider", TrainerCall], None],
    ):
        super().__init__(adapter, grid, role)
        self._shared = shared
        self._on_new_training = on_new_training

    def traced(self, call: TrainerCall | None) -> None:
        """Notes that `reset` or `step` is being traced, by a trainer that is getting ready."""
        if self._shared.progress.traced(call, self._shared.clock()):
            assert call is not None
            self._shared.hold.forget()
            with self._shared.lock:
                self.rollouts.clear()
                self._shared.findings.forget()
            self._on_new_training(self, call)

    def leave(self) -> None:
        """Drops the reference to the page, as the viewer is closed: compiled programs keep this
        object alive, and must not keep the page alive too."""
        self._on_new_training = lambda source, call: None

    def decide(
        self,
        origin: Origin,
        countdown: int,
        shard: int,
        report: Sequence[int] = (),
        *,
        hidden: bool = False,
    ) -> Decision:
        """Decides about one due step, and holds the training there if nothing must be pushed.

        Args:
            origin: the origin of the call.
            countdown: see `Pacer.ask`.
            shard: the device.
            report: its report of NaN and Inf, see `watch.report`; empty if nothing has turned.
            hidden: whether the device is busy meanwhile, so that this costs the training nothing.
        """
        shared, start = self._shared, self._shared.clock()
        refreshed = shared.hold.refreshes
        with shared.lock:
            rollout = self._rollout(origin, countdown)
            self._settle(rollout, shard, start)
            push, new = self._paced(rollout, origin, countdown, shard, start, report)
            decision = self._decision(rollout, origin, shard, push=push)
            rollout.called[shard] = shared.clock()
            if not hidden:
                shared.meter.asked(start, rollout.called[shard], pushes=decision.push > 0)
        if new is not None:
            shared.tell(new)
        return self._held(decision, rollout, origin, shard, refreshed)

    def _rollout(self, origin: Origin, countdown: int) -> Rollout:
        num_envs = origin.num_envs * origin.num_shards
        rollout = self.rollouts.get(origin.role)
        begins = rollout is None
        if rollout is None or rollout.num_envs != num_envs:
            rollout = Rollout(
                Pacer(self.adapter.dt), num_envs, origin.num_shards, self._shared.new_choice()
            )
            self.rollouts[origin.role] = rollout
        if countdown == FRESH:
            rollout.models.clear()  # the reset may have changed the models
        self._take_the_page(origin.role, begins=begins)
        return rollout

    def _take_the_page(self, role: str, *, begins: bool) -> None:
        """Shows this environment if it was the last of several in one viewer to begin. If they are
        stepped in turn, the shown one stays, whichever is reset, until it is no longer stepped."""
        shared, shown = self._shared, self._shared.shown.get(role)
        if shown is self:
            return
        rollout, now = shown.rollouts.get(role) if shown is not None else None, shared.clock()
        if begins or rollout is None or self._alone(role, rollout, now):
            shared.show_source(role, self)
        else:
            shared.beside.setdefault(role, {})[self] = now

    def _alone(self, role: str, shown: Rollout, now: float) -> bool:
        """Whether the shown environment is no longer stepped while this one is."""
        last = max(shown.called.values(), default=now)
        own = max(self.rollouts[role].called.values(), default=-np.inf)
        return own > last and now - last > IDLE_SECONDS

    def _paced(
        self,
        rollout: Rollout,
        origin: Origin,
        countdown: int,
        shard: int,
        now: float,
        report: Sequence[int] = (),
    ) -> tuple[bool, Finding | None]:
        """Counts the step and plans the next call. Returns whether to push this step, and the
        finding in `report`, the device's report of NaN and Inf, if it must be reported. The caller
        holds `shared.lock`."""
        shared, pacer, role = self._shared, rollout.pacer, origin.role
        known = rollout.steps.of.get(shard)
        last_skip = known.skip if known is not None else 0
        control = shared.control
        shown = shared.shown[role] is self
        if shared.num_processes > 1:  # the lowest shard plans, of those that have been seen here
            pacer.leader = min(pacer.leader, shard) if rollout.called else shard
        answer = pacer.ask(
            now,
            countdown,
            shared.pacing,
            shared.meter.watching,
            active=shown and control.wants(role),
            shard=shard,
            polling=shared.meter.polling,
        )
        if shard == pacer.leader:
            shared.tell_steps(role, rollout, now)
        new = None
        if report:
            consecutive = countdown == FRESH or last_skip == 0
            steps = rollout.steps.of[shard].env_steps
            new = self._found(rollout, origin, shard, report, steps, consecutive=consecutive)
            control = shared.control
            shown = shared.shown[role] is self
        page, recorded, skip = wish(control, role, answer, shown, shared.hold.counts(role))
        rollout.steps.of[shard].skip = skip
        shared.meter.recording = recorded
        (rollout.unshown.add if recorded and not page else rollout.unshown.discard)(shard)
        if page or recorded:
            leads = shard == pacer.leader
            stretches = control.mode == "realtime" and not pacer.following
            # An episode is recorded to its end: the drawn environments stay the same meanwhile.
            stale = rollout.choice.is_stale(
                shared.selection,
                now,
                begins=answer.begins and stretches and leads and not recorded,
                seconds=np.inf if stretches or recorded or not leads else control.stretch_seconds,
            )
            if stale:
                self._choose(rollout, now)
        return page or recorded, new

    def _found(
        self,
        rollout: Rollout,
        origin: Origin,
        shard: int,
        report: Sequence[int],
        env_steps: int,
        *,
        consecutive: bool,
        each_reward: bool = True,
    ) -> Finding | None:
        """Handles a NaN or Inf, and holds the training if so set. The caller holds `shared.lock`.

        Args:
            rollout: the rollout.
            origin: the origin of the call.
            shard: the device that found it.
            report: its report, see `watch.report`.
            env_steps: the step at which it was found.
            consecutive: whether all fields were checked at the step before, too.
            each_reward: whether rewards are checked at each step, whatever else is.

        Returns:
            The finding, if it must be reported.
        """
        shared, role = self._shared, origin.role
        row, count, watching, *kinds = report
        fields = fields_of(origin.watched, kinds)
        exact = bool(watching) or consecutive
        step = env_steps * rollout.num_envs
        if role == "train":  # continue from the trainer's own count
            ahead = max(env_steps - rollout.steps.told, 0)
            step = shared.progress.num_steps + ahead * rollout.num_envs
        finding = Finding(
            role,
            shard * origin.num_envs + row,
            fields,
            env_steps,
            step,
            others=count - 1,
            exact=exact or (each_reward and {name for name, _ in fields} == {"reward"}),
            each_reward=each_reward,
        )
        return finding if shared.found(self, finding) else None

    def _is_watched(self, rollout: Rollout, shard: int) -> bool:
        """Whether the device must check all fields at each step: to hold at the first NaN, or
        once, to forget reported fields that are finite again."""
        rearmed = self._shared.findings.rearmed
        return self._shared.control.hold_on_nan or rollout.rearmed.get(shard, rearmed) != rearmed

    def _choose(self, rollout: Rollout, now: float) -> None:
        selection, kept = self._shared.selection, self._shared.kept_env
        rollout.choice.begin(selection, rollout.num_envs, self.capacity, now, kept)

    def _decision(self, rollout: Rollout, origin: Origin, shard: int, *, push: bool) -> Decision:
        """Decides whether and what to push of a step. The caller holds `shared.lock`."""
        shared, choice, role = self._shared, rollout.choice, origin.role
        control = shared.control
        if control.closed or not push:
            return Decision(FOREVER if control.closed else rollout.steps.of[shard].skip)
        request, env_index = None, choice.env_index
        if env_index is not None and not choice.pending:
            request = rollout.request(origin, shard, env_index, alone=shared.num_processes == 1)
        drawn = Drawn(
            choice.rule_for(shard),
            request,
            rollout.models,
            shared.wants_twins(role) or control.records(role),
            shared.detailed_env(role),
        )
        decision = decide(origin, rollout.steps.of[shard].skip, drawn)
        if decision.request is not None:
            rollout.decisions[shard] = decision
        return decision

    def _settle(self, rollout: Rollout, shard: int, now: float) -> None:
        """Called before each decision, with `shared.lock` held."""

    def _held(
        self, decision: Decision, rollout: Rollout, origin: Origin, shard: int, refreshed: int
    ) -> Decision:
        """Waits if the training is held at this step and nothing more must be pushed.

        Args:
            decision: the one made so far.
            rollout: the rollout.
            origin: the origin of the call.
            shard: the device.
            refreshed: `hold.refreshes` as read before the decision was made.

        Returns:
            The decision; another one if other environments must be shown while it is held.
        """
        shared, role = self._shared, origin.role
        if not decision.push and shared.hold.paused:
            sharded = origin.num_shards > 1
            while not decision.push and shared.hold.wait(
                role, shard, rollout.steps.of[shard], refreshed, sharded=sharded
            ):
                refreshed = shared.hold.refreshes
                with shared.lock:
                    push = shared.shown.get(role) is self and shared.control.streaming
                    push = push and shared.control.show in (role, "both")
                    # The clock stands still: only another selection makes a choice stale.
                    if push and rollout.choice.is_stale(
                        shared.selection, shared.clock(), begins=False, seconds=np.inf
                    ):
                        self._choose(rollout, shared.clock())
                    rollout.unshown.discard(shard)  # the page wants to see it
                    decision = self._decision(rollout, origin, shard, push=push)
            if shared.hold.counts(role):
                with shared.lock:
                    rollout.steps.of[shard].skip = 0
                decision = decision._replace(skip=0)
        if decision.push or decision.skip >= FOREVER:
            return decision
        watched = self._is_watched(rollout, shard)
        rollout.rearmed[shard] = shared.findings.rearmed
        return decision._replace(watched=True) if watched else decision

    def _rank(
        self, rollout: Rollout, origin: Origin, shard: int, rule: int, columns: np.ndarray
    ) -> None:
        """Reports a device's ranking of its environments to the shared state."""
        row, since_termination, bits, finite, tier = columns.copy()  # kept beyond this call
        ranking = Ranking(
            shard * origin.num_envs + row,
            bits.view(np.float32),
            since_termination,
            finite > 0,
            tier,
        )
        self._shared.ranked(self, origin.role, rollout, shard, rule, ranking)
