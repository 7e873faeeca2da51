"""What is around an environment, and what is inside of a wrapper: Brax's or MuJoCo Playground's."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from brax.envs.base import Env, Wrapper
from brax.envs.wrappers.training import AutoResetWrapper, EpisodeWrapper


def playground() -> Any:
    """The module `mujoco_playground`, or None. Who has one of its environments has imported it;
    nobody else is to wait for that, or to need it."""
    return sys.modules.get("mujoco_playground")


def is_playground(env: object) -> bool:
    """Whether `env` is an environment of Playground's, or a wrapper of its around anything."""
    module = playground()
    return module is not None and isinstance(env, module.MjxEnv)


def is_env(env: object) -> bool:
    return isinstance(env, Env) or is_playground(env)


def wrapper_class(env: object) -> type:
    """The class that wrappers of such an environment have: trainers tell Brax's environments from
    Playground's by it, and either's wrappers lean on its own."""
    return playground().wrapper.Wrapper if is_playground(env) else Wrapper


@functools.cache
def of_kind(cls: type, base: type) -> type:
    """`cls` as a subclass of `base` too."""
    if issubclass(cls, base):
        return cls
    return type(cls.__name__, (cls, base), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def layers(env: Any) -> Iterator[Any]:
    """`env` and all that it is wrapped around, outermost first."""
    yield env
    while is_env(inner := vars(env).get("env")):
        env = inner
        yield env


def resets_inside(env: Any) -> bool:
    """Whether episodes are begun anew within `env`'s `step`."""
    known: tuple[type, ...] = (AutoResetWrapper,)
    if (module := playground()) is not None:
        known += (module.wrapper.BraxAutoResetWrapper,)
    return any(isinstance(layer, known) for layer in layers(env))


def truncates_inside(env: Any) -> bool:
    """Whether episodes that run out of time are ended within `env`'s `step`."""
    return any(isinstance(layer, EpisodeWrapper) for layer in layers(env))


def action_repeat(env: Any) -> int:
    """Physics-wise, how many steps of the innermost environment one of `env`'s is."""
    repeat = 1
    for layer in layers(env):
        if isinstance(layer, EpisodeWrapper):
            repeat *= layer.action_repeat
    return repeat


def stand_in(outer: Any, base: Any) -> Any:
    """An object that is `base` in every respect, but is reset and stepped through `outer`.

    Wrappers for domain randomisation write a model into `env.unwrapped` and step that, past every
    wrapper in between. So what they are given must be of the base's class, write into the base's
    attributes, and still come by here.

    Args:
        outer: has `reset_base(rng)` and `step_base(state, action)`.
        base: the innermost environment.
    """

    def reset(self: Any, rng: Any) -> Any:
        return outer.reset_base(rng)

    def step(self: Any, state: Any, action: Any) -> Any:
        return outer.step_base(state, action)

    cls = type(base)
    members = {"reset": reset, "step": step, "__module__": cls.__module__, "__doc__": cls.__doc__}
    twin = object.__new__(type(cls.__name__, (cls,), members))
    twin.__dict__ = base.__dict__  # the very same: what is written there, the base has as well
    return twin


_SHADOWING = threading.Lock()
"""Held while a method is replaced, or put back."""


class _Shadow:
    """In the place of a method of one object, as long as anybody is within `shadowed`.

    Each thread sees what it has put there itself, and the object's own method where it has put
    nothing: several may trace one environment at a time.
    """

    def __init__(self, attributes: dict[str, Any], name: str, method: Callable[..., Any]):
        self.__name__ = name  # JAX names what it traces by it
        self._attributes, self._name, self._method = attributes, name, method
        self._was_there = name in attributes
        self._users = 0
        self._threads = threading.local()

    @property
    def stack(self) -> list[Callable[..., Any]]:
        """What this thread has put there, the newest last."""
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        return self._threads.stack

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stack = self.stack
        if not stack:
            return self._method(*args, **kwargs)
        # What the newest one calls by the same name is what was there before it.
        newest = stack.pop()
        try:
            return newest(*args, **kwargs)
        finally:
            stack.append(newest)

    def enter(self) -> None:
        self._users += 1
        self._attributes[self._name] = self

    def leave(self) -> None:
        self._users -= 1
        if self._users:
            return
        if self._was_there:
            self._attributes[self._name] = self._method
        else:
            del self._attributes[self._name]


@contextlib.contextmanager
def shadowed(env: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within it, `env.name` is `method`, for this very object and this thread alone. If `method`
    calls `env.name` itself, it comes to what was there before."""
    attributes = vars(env)
    with _SHADOWING:
        shadow = attributes.get(name)
        if not isinstance(shadow, _Shadow):
            shadow = _Shadow(attributes, name, getattr(env, name))
        shadow.enter()
    shadow.stack.append(method)
    try:
        yield
    finally:
        shadow.stack.pop()
        with _SHADOWING:
            shadow.leave()
