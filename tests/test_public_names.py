"""What is public stands in `__all__` of its room, exists, is sorted, and is explained."""

from __future__ import annotations

import importlib
import inspect
import pickle
from pathlib import Path

import pytest

import aegis.sync
from aegis import errors
from aegis.sync._stub import stub_text

ROOMS = (
    "aegis",
    "aegis.config",
    "aegis.redis",
    "aegis.database",
    "aegis.http",
    "aegis.embedded",
    "aegis.upstream",
    "aegis.telemetry",
    "aegis.gateway",
    "aegis.doctor",
    "aegis.sync",
)


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist_and_are_explained(room):
    """No name without an object, no class or function without a docstring."""
    module = importlib.import_module(room)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        public = getattr(module, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__doc__, f"{room}.{name} has no docstring"
            if inspect.isclass(public):
                for method, value in vars(public).items():
                    if not method.startswith("_") and inspect.isfunction(value):
                        assert value.__doc__, f"{room}.{name}.{method} has no docstring"


def test_unknown_name_is_an_attribute_error():
    """The lazy package behaves like any other."""
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = aegis.nothing_here


ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.AegisError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_have_one_root_and_say_what_they_mean(error):
    """One tree, each class with a docstring of its own."""
    assert error.__doc__
    assert issubclass(error, errors.AegisError)


def test_errors_survive_pickling_between_processes():
    """Arguments are the arguments of the constructor."""
    for exc in (
        errors.RateLimitTimeoutError("kis", 1.0, 2.5),
        errors.RateLimitLayoutError("kis", 2, 1),
        errors.TooManyWaitersError("kis", 50_000),
        errors.RedisUnavailableError("h:1", "refused"),
        errors.ServerLostError("h:1", "GET", "reset"),
        errors.ServerReplyError("GET", "WRONGTYPE x"),
        errors.ConfigError(["A: wrong"]),
        errors.MissingSettingError("KisClient", "KIS_APP_KEY"),
        errors.ReplayError("f", 3, "a date"),
        errors.ServerStartError("valkey", "reason", "log"),
        errors.PortTakenError("simulator", 80, "in use"),
        errors.DemoError("collector 1", "died", "log"),
    ):
        again = pickle.loads(pickle.dumps(exc))
        assert (type(again), str(again)) == (type(exc), str(exc))


#: What users build and pass, and only the client awaits.
PASSED_ON = {"Cassette"}


@pytest.mark.parametrize("room", ["aegis", "aegis.redis", "aegis.database", "aegis.http", "aegis.upstream"])
def test_every_public_async_class_can_be_had_blocking(room):
    """Whoever adds one derives its twin in `aegis/sync/__init__.py`: one line, and one in its `__all__`."""
    module = importlib.import_module(room)
    for name in set(module.__all__) - PASSED_ON:
        cls = getattr(module, name)
        plain = not inspect.isclass(cls) or getattr(cls, "_is_protocol", False)
        if not plain and any(map(inspect.iscoroutinefunction, vars(cls).values())):
            assert name in aegis.sync.__all__, f"{room}.{name} has no twin in aegis.sync"


def test_the_types_of_the_blocking_classes_are_those_of_the_async_ones():
    """`aegis/sync/__init__.pyi` is made from their source."""
    committed = Path(aegis.sync.__file__).with_suffix(".pyi").read_text()
    assert committed == stub_text(), "run `make docs` and commit the result"
