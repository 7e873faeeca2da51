"""Hands policies that were trained elsewhere to the page, which compares them."""

import threading

from brax_viser.cli.loading import Refused
from brax_viser.cli.policies import Given, Policies, of_run
from brax_viser.records.environment import Environment
from brax_viser.runs.reader import SavedRun
from brax_viser.sandbox.trained import Trained
from brax_viser.sandbox.trial import read


class PlayedPolicies:
    """The policies of `brax-viser play`, whose environment is on screen: a `PolicyStore`."""

    def __init__(self, policies: Policies):
        self._policies = policies

    def steps(self) -> tuple[int, ...]:
        return self._policies.steps

    def get(self, num_steps: int) -> Trained:
        params = self._policies.params(num_steps)
        return Trained(num_steps, self._policies.make_policy, params)

    def environment(self) -> Environment | None:
        return None


class RunPolicies:
    """The policies of a run directory: a `PolicyStore`. The environment is built, and JAX imported
    for it, when a policy is first requested."""

    def __init__(self, run: SavedRun, given: Given):
        self._run, self._given = run, given
        self._lock = threading.Lock()  # held while the environment is built
        self._opened: tuple[Environment, Policies] | None = None

    def steps(self) -> tuple[int, ...]:
        return self._run.known_policies

    def get(self, num_steps: int) -> Trained:
        policies = self._open()[1]
        return Trained(num_steps, policies.make_policy, policies.params(num_steps))

    def environment(self) -> Environment | None:
        return self._open()[0]

    def _open(self) -> tuple[Environment, Policies]:
        with self._lock:
            if self._opened is None:
                try:
                    env, _, policies = of_run(self._run, self._given)
                except Refused as error:
                    raise ValueError(str(error)) from error
                self._opened = read(env), policies
            return self._opened
