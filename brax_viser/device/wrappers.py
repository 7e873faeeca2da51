"""Finds and handles the wrappers around an environment, Brax's and MuJoCo Playground's."""

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
    """Returns the module `mujoco_playground`, or None. Looked up in `sys.modules`: a program with
    one of its environments has imported it, and other programs need not install it."""
    return sys.modules.get("mujoco_playground")


def is_playground(env: object) -> bool:
    """Whether `env` is a Playground environment, or a Playground wrapper around any."""
    module = playground()
    return module is not None and isinstance(env, module.MjxEnv)


def is_env(env: object) -> bool:
    """Whether `env` can be reset and stepped like Brax's and Playground's environments; its class
    need not be derived from theirs."""
    if isinstance(env, Env) or is_playground(env):
        return True
    if isinstance(env, type | ModuleType):
        return False
    # Gym environments have both too, with other arguments, but also an `action_space`.
    calls = all(callable(attribute(env, name)) for name in ("reset", "step"))
    sizes = [attribute(env, name) is not None for name in ("action_space", "action_size")]
    return calls and sizes != [True, False]


def attribute(thing: Any, name: str) -> Any:
    """Returns the attribute, or None if it does not exist or its property raises: the property may
    be unimplemented, or not ready, which only our access would show."""
    try:
        return getattr(thing, name, None)
    # Catch everything that a user's class may raise: training does not need the attribute.
    except Exception as error:
        log.debug("%s of a %s cannot be read: %r", name, type(thing).__name__, error)
        return None


def wrapper_class(env: object) -> type:
    """Returns the base class for a wrapper of `env`: trainers tell Brax's environments from
    Playground's by it, and the wrappers of either package expect their own."""
    return playground().wrapper.Wrapper if is_playground(env) else Wrapper


class _Unregistered:
    """The first base of a class that is made at run time: stops `__init_subclass__` of the other
    bases, which may register their subclasses or require arguments, from being called."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass


@functools.cache
def of_kind(cls: type, base: type) -> type:
    """Returns `cls`, or if it is not a subclass of `base`, a class derived from both."""
    if issubclass(cls, base):
        return cls
    members = {"__module__": cls.__module__, "__doc__": cls.__doc__, "made_of": (cls, base)}
    return type(cls.__name__, (_Unregistered, cls, base), members)


def empty_of(cls: type, base: type) -> Any:
    """Returns an object of `of_kind(cls, base)` without attributes, for the caller to fill."""
    return object.__new__(of_kind(cls, base))


def layers(env: Any) -> Iterator[Any]:
    """Yields `env` and all environments that it wraps, outermost first."""
    yield env
    while is_env(inner := _inner(env)):
        env = inner
        yield env


def _inner(env: Any) -> Any:
    if type(env) is StandIn:
        return outer_of(env)
    # Not by `getattr`: wrappers forward the attributes that they lack to the inner environment.
    if isinstance(attributes := attribute(env, "__dict__"), dict):
        return attributes.get("env")
    return attribute(env, "env")


def base_of(env: Any) -> Any:
    """Returns the innermost environment. Only Brax's are sure to have it as `unwrapped`."""
    base = attribute(env, "unwrapped")
    if is_env(base):
        return base
    *_, base = layers(env)
    return base


def resets_inside(env: Any) -> bool:
    """Whether `env`'s `step` resets environments whose episodes have ended."""
    known: tuple[type, ...] = (AutoResetWrapper,)
    if (module := playground()) is not None:
        known += (module.wrapper.BraxAutoResetWrapper,)
    return any(isinstance(layer, known) for layer in layers(env))


def truncates_inside(env: Any) -> bool:
    """Whether `env`'s `step` ends episodes at a time limit."""
    return any(isinstance(layer, EpisodeWrapper) for layer in layers(env))


def action_repeat(env: Any) -> int:
    """Returns the number of steps of the innermost environment in one step of `env`."""
    repeat = 1
    for layer in layers(env):
        if isinstance(layer, EpisodeWrapper):
            repeat *= layer.action_repeat
    return repeat


class StandIn:
    """An object that behaves like `base`, but is reset and stepped through `outer`.

    Wrappers for domain randomisation write a model into `env.unwrapped` and step that, skipping all
    wrappers in between. So the object that they get must pass for an instance of the base's class
    and write into the base's attributes, but still step through `outer`. It is not a subclass of
    the base's class, because some environments register their subclasses.
    """

    __slots__ = ("__weakref__", "_base", "_outer")

    def __init__(self, outer: Any, base: Any):
        """Stands in for `base`.

        Args:
            outer: has `reset_base(base, ...)`, `step_base(base, ...)` and `unwrapped`.
            base: the innermost environment.
        """
        object.__setattr__(self, "_outer", outer)
        object.__setattr__(self, "_base", base)

    def reset(self, *args: Any, **named: Any) -> Any:
        return outer_of(self).reset_base(within(self), *args, **named)

    def step(self, *args: Any, **named: Any) -> Any:
        return outer_of(self).step_base(within(self), *args, **named)

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
        # Unpickled, it gets the base of its outer wrapper, even if it was a copy with its own base.
        return getattr, (outer_of(self), "unwrapped")


_OWN = ("reset", "step", "unwrapped", "__copy__", "__deepcopy__", "__reduce_ex__")


def within(env: Any) -> Any:
    """Returns the base of a stand-in, and any other environment unchanged."""
    return object.__getattribute__(env, "_base") if type(env) is StandIn else env


def outer_of(stand_in: StandIn) -> Any:
    """Returns the wrapper through which a stand-in is reset and stepped."""
    return object.__getattribute__(stand_in, "_outer")


def copied(env: Any) -> Any:
    """Returns a shallow copy, or `env` itself if it cannot be copied."""
    try:
        return copy.copy(env)
    # Catch everything that a user's class may raise: training does not need the copy.
    except Exception as error:
        log.info("%s cannot be copied: %s", type(env).__name__, error)
        return env


def deep_copied(env: Any, memo: dict[int, Any]) -> Any:
    """Returns a deep copy that shares modules: Brax's environments keep one as an attribute, and
    Python cannot copy modules."""
    for _, module in _modules(env):
        memo[id(module)] = module
    return copy.deepcopy(env, memo)


class _Module:
    """Stands for a module in a pickled environment, by its name."""

    def __init__(self, name: str):
        self.name = name


def without_modules(env: Any) -> Any:
    """Returns `env`, or a copy in which names replace its modules, which cannot be pickled."""
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
    """Undoes `without_modules` in place."""
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
"""Held while a method is replaced or restored."""


class _Shadow:
    """Takes the place of a method of one object while any thread is within `shadowed`.

    Each thread calls the replacement that it has set itself, or else the object's own method:
    several threads may trace one environment at a time.
    """

    def __init__(self, attributes: dict[str, Any], name: str, method: Callable[..., Any]):
        self.__name__ = name  # JAX names traced functions by it
        self._attributes, self._name, self._method = attributes, name, method
        self._was_there = name in attributes
        self._users = 0
        self._threads = threading.local()

    @property
    def stack(self) -> list[Callable[..., Any]]:
        """The replacements that this thread has set, the newest last."""
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        return self._threads.stack

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stack = self.stack
        if not stack:
            return self._method(*args, **kwargs)
        # While the newest replacement runs, the method's name means the one before it.
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
    """Replaces `env.name` by `method` within the context, for this object and this thread alone. If
    `method` calls `env.name` itself, it calls the previous method."""
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
