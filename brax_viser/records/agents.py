"""Names the agents whose environments form one batch, such as the seeds of a vmapped training."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agents:
    """Agents by name. Each has an equal part of the batch, in this order: `vmap` around a training
    puts the environments of its first seed first. Without names all environments are one agent's.
    """

    names: tuple[str, ...] = ()

    @classmethod
    def named(cls, names: Sequence[object]) -> "Agents":
        """Checks a script's names.

        Raises:
            ValueError: two are the same, or it is a single string.
        """
        found = () if isinstance(names, str) else tuple(map(str, names))
        if isinstance(names, str) or len(set(found)) != len(found):
            raise ValueError(f"agents={names!r}: must be a list of names, none twice")
        return cls(found)

    def index(self, which: object) -> int:
        """Returns an agent's number, given that or its name.

        Raises:
            ValueError: there is none.
        """
        if which in self.names:
            return self.names.index(which)  # type: ignore[arg-type]
        if isinstance(which, int) and not isinstance(which, bool) and 0 <= which < len(self.names):
            return which
        if self.names:
            raise ValueError(f"agent {which!r}: must be among {', '.join(self.names)}")
        raise ValueError("name the agents first, as in viewer.agents = ['seed 0', 'seed 1']")

    def name_of(self, env: int, num_envs: int | None) -> str:
        """Returns what an environment is called: "env 137", or "seed 2 · env 9"."""
        count = len(self.names)
        if not count or num_envs is None or not 0 <= env < num_envs:
            return f"env {env}"
        agent = env * count // num_envs
        return f"{self.names[agent]} · env {env - part(agent, count, num_envs).start}"


UNNAMED = Agents()


def part(agent: int, count: int, num_envs: int) -> range:
    """Returns the environments of one of `count` agents."""
    first, end = (-(-place * num_envs // count) for place in (agent, agent + 1))
    return range(first, end)
