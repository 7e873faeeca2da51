"""What is around an environment, and what is inside of a wrapper: Brax's or MuJoCo Playground's."""

import contextlib
import copy
import functools
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from brax.envs.base import Env, Wrapper
from brax.envs.wrappers.training import AutoResetWrapper, EpisodeWrapper

log = logging.getLogger("brax_viser")


def playground() -> Any:
    """The module `mujoco_playground`, or None. Who has one of its environments has imported it;
    nobody else is to wait for that, or to need it."""
    return sys.modules.get("mujoco_playground")


def is_playground(env: object) -> bool:
    """Whether `env` is an environment of Playground's, or a wrapper of its around anything."""
    module = playground()
    return module is not None and isinstance(env, module.MjxEnv)


def is_env(env: object) -> bool:
    """Whether it can be reset and stepped as Brax's and Playground's environments can; a class of
    its own need not be theirs."""
    if isinstance(env, Env) or is_playground(env):
        return True
    if isinstance(env, type | ModuleType):
        return False
    # Gym's have these two as well, with other arguments, and a space of actions.
    calls = all(callable(attribute(env, name)) for name in ("reset", "step"))
    sizes = [attribute(env, name) is not None for name in ("action_space", "action_size")]
    return calls and sizes != [True, False]


def attribute(thing: Any, name: str) -> Any:
    """What it is; None where there is no such attribute, or a property that raises: it may not be
    implemented, or not be ready, and nobody but us may have asked for it yet."""
    try:
        return getattr(thing, name, None)
    # Whatever a class of the user's raises: it trains without.
    except Exception as error:
        log.debug("%s of a %s cannot be read: %r", name, type(thing).__name__, error)
        return None


def wrapper_class(env: object) -> type:
    """The class that wrappers of such an environment have: trainers tell Brax's environments from
    Playground's by it, and either's wrappers lean on its own."""
    return playground().wrapper.Wrapper if is_playground(env) else Wrapper


class _Unregistered:
    """First among the bases of a class that is made on the fly, so that those which keep account
    of their subclasses do not hear of it, nor ask for arguments that nobody has."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass


@functools.cache
def of_kind(cls: type, base: type) -> type:
    """`cls` as a subclass of `base` too."""
    if issubclass(cls, base):
        return cls
    members = {"__module__": cls.__module__, "__doc__": cls.__doc__, "made_of": (cls, base)}
    return type(cls.__name__, (_Unregistered, cls, base), members)


def empty_of(cls: type, base: type) -> Any:
    """An object of `of_kind(cls, base)` without attributes, to be filled by whoever copies one."""
    return object.__new__(of_kind(cls, base))


def layers(env: Any) -> Iterator[Any]:
    """`env` and all that it is wrapped around, outermost first."""
    yield env
    while is_env(inner := _inner(env)):
        env = inner
        yield env


def _inner(env: Any) -> Any:
    if type(env) is StandIn:
        return outer_of(env)
    # Not by `getattr`: a wrapper hands on what it does not have itself.
    if isinstance(attributes := attribute(env, "__dict__"), dict):
        return attributes.get("env")
    return attribute(env, "env")


def base_of(env: Any) -> Any:
    """The innermost environment, which those that are not Brax's need not tell by `unwrapped`."""
    base = attribute(env, "unwrapped")
    if is_env(base):
        return base
    *_, base = layers(env)
    return base


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


class StandIn:
    """An object that is `base` in every respect, but is reset and stepped through `outer`.

    Wrappers for domain randomisation write a model into `env.unwrapped` and step that, past every
    wrapper in between. So what they are given must pass for one of the base's class, write into
    the base's attributes, and still come by here. It is of no class that is made for it: there are
    environments that keep account of their subclasses.
    """

    __slots__ = ("__weakref__", "_base", "_outer")

    def __init__(self, outer: Any, base: Any):
        """Hands all on.

        Args:
            outer: has `reset_base(base, rng)`, `step_base(base, state, action)` and `unwrapped`.
            base: the innermost environment.
        """
        object.__setattr__(self, "_outer", outer)
        object.__setattr__(self, "_base", base)

    def reset(self, rng: Any) -> Any:
        return outer_of(self).reset_base(within(self), rng)

    def step(self, state: Any, action: Any) -> Any:
        return outer_of(self).step_base(within(self), state, action)

    @property
    def unwrapped(self) -> Any:
        return self

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        return getattr(within(self), name)  # `__class__` and `__dict__` too

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(within(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(within(self), name)

    def __repr__(self) -> str:
        return repr(within(self))

    def __copy__(self) -> "StandIn":
        return StandIn(outer_of(self), copy.copy(within(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandIn":
        return StandIn(copy.deepcopy(outer_of(self), memo), deep_copied(within(self), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A base of its own, if it was copied, is that of its outer when it is elsewhere.
        return getattr, (outer_of(self), "unwrapped")


_OWN = ("reset", "step", "unwrapped", "__copy__", "__deepcopy__", "__reduce_ex__")


def within(env: Any) -> Any:
    """The environment that a stand-in stands in for; any other as it is."""
    return object.__getattribute__(env, "_base") if type(env) is StandIn else env


def outer_of(stand_in: StandIn) -> Any:
    """What a stand-in is reset and stepped through."""
    return object.__getattribute__(stand_in, "_outer")


def copied(env: Any) -> Any:
    """A shallow copy; where its class cannot be copied, the very same."""
    try:
        return copy.copy(env)
    # Whatever a class of the user's makes of being copied: it trains without.
    except Exception as error:
        log.info("%s cannot be copied: %s", type(env).__name__, error)
        return env


def deep_copied(env: Any, memo: dict[int, Any]) -> Any:
    """A deep copy that shares modules: Brax's environments have one among their attributes, and
    Python copies none."""
    for _, module in _modules(env):
        memo[id(module)] = module
    return copy.deepcopy(env, memo)


class _Module:
    """In place of a module, by its name."""

    def __init__(self, name: str):
        self.name = name


def without_modules(env: Any) -> Any:
    """The environment, or a copy with names in the place of modules, which cannot be pickled."""
    new = copied(env) if any(_modules(env)) else env
    if new is env:
        return env
    for name, value in vars(new).items():
        if isinstance(value, ModuleType):
            vars(new)[name] = _Module(value.__name__)
        elif name == "env":
            vars(new)[name] = without_modules(value)
    return new


def with_modules(env: Any) -> None:
    """Undoes `without_modules`, in place."""
    for layer in layers(env):
        attributes = attribute(layer, "__dict__") or {}
        for name, value in attributes.items():
            if isinstance(value, _Module):
                attributes[name] = importlib.import_module(value.name)


def _modules(env: Any) -> Iterator[tuple[str, ModuleType]]:
    for layer in layers(env):
        for name, value in (attribute(layer, "__dict__") or {}).items():
            if isinstance(value, ModuleType):
                yield name, value


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
