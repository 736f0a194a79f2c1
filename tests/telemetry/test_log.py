"""Log lines: one look for all, secrets masked, bursts folded, and silence without set-up."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings

import pytest
import structlog
from pydantic import SecretStr

from aegis.config import Config, LogConfig, registry
from aegis.errors import ConfigError
from aegis.telemetry import configure_logging, log_context, secrets_of
from aegis.telemetry._program import program
from aegis.testing import until_sync

CODE = """
import logging, sys
from aegis.config import LogConfig
from aegis.telemetry import configure_logging
configure_logging(LogConfig(level="info", format="json"))
logging.getLogger("users.own").info("hello %s", "you", extra={"account": "a-1"})
logging.getLogger("aegis.http").warning("GET http://x/?crtfc_key=SECRET1", extra={"appsecret": "SECRET2"})
logging.getLogger("aegis.http").debug("too detailed")
try:
    raise ValueError("token=SECRET3")
except ValueError:
    logging.getLogger("aegis").exception("failed")
"""


def stderr_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr


@pytest.fixture
def out():
    """What is written; afterwards the process logs as it did before."""
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    sys.excepthook = hook
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def lines(out):
    def read():
        return [json.loads(line) for line in out.getvalue().splitlines()]

    return read


def configured(out, *, secrets=(), secret_names=(), **options):
    options = {"format": "json", **options}
    configure_logging(LogConfig(**options), process="tester", secrets=secrets, secret_names=secret_names, stream=out)
    return logging.getLogger("users.own")


def test_json_lines_hold_fields_and_no_secret():
    """Our records and users' own, with their extras; secrets masked in text, fields and tracebacks."""
    lines = [json.loads(line) for line in stderr_of(CODE).splitlines()]
    assert [line["event"] for line in lines[:1]] == ["hello you"]
    assert lines[0]["account"] == "a-1"
    assert lines[1]["appsecret"] == "***"
    assert len(lines) == 3
    assert "SECRET" not in json.dumps(lines)


@pytest.mark.parametrize("name", [variable.name for variable in registry() if variable.secret])
def test_secret_variables_are_masked_under_any_of_their_names(out, name):
    """As the environment, our fields and people write them, also where nobody gave their values."""
    value = "redis://me:h1dden-v4lue@host/0" if name.endswith("_URL") else "h1dden-v4lue"
    own, field = configured(out), name.partition("_")[2].lower()
    own.error("%s=%s", name, value)
    own.error("started with %s", {name: value, field: value})
    own.error("started", extra={field: value, "settings": {name.lower(): value}})
    assert "h1dden" not in out.getvalue()


def test_importing_configures_nothing():
    """A process that does not ask prints nothing below a warning and keeps its handlers."""
    code = "import logging, sys, aegis.runtime, aegis.telemetry; print(logging.getLogger().handlers, sys.excepthook)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[] <built-in function excepthook>\n", "")


def test_every_way_to_log_gives_the_same_line(out, lines):
    """The standard library, structlog, Python's warnings: the same fields, whoever wrote it."""
    own = configured(out)
    own.warning("hello %s", "you", extra={"account": "a-1"})
    structlog.get_logger("users.own").warning("hello you", account="a-1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("token=s3cret is old", UserWarning, stacklevel=1)
    first, second, third = lines()
    assert {**first, "timestamp": ""} == {**second, "timestamp": ""}
    assert first.keys() == {"event", "level", "logger", "timestamp", "process", "pid", "account"}
    assert (first["process"], first["level"], first["logger"]) == ("tester", "warning", "users.own")
    assert first["timestamp"].endswith("Z")
    assert third["logger"] == "py.warnings"
    assert "s3cret" not in out.getvalue()


@pytest.mark.parametrize(
    ("started_as", "name"),
    [("/usr/bin/collect.py", "collect"), ("/x/aegis/__main__.py", "aegis"), ("-c", "-c"), ("", "python")],
)
def test_a_process_without_a_name_has_that_of_its_program(monkeypatch, started_as, name):
    """Of its file, or of the package that `python -m` was given."""
    monkeypatch.setattr(sys, "argv", [started_as])
    assert program() == name


def test_the_context_is_on_every_line_inside_it_and_on_none_outside(out, lines):
    """Upstream and request id, for our loggers and users' own, nested, and gone afterwards."""
    own = configured(out)
    with log_context(upstream="kis", request_id="r-1"):
        own.info("one")
        with log_context(request_id="r-2"):
            logging.getLogger("aegis.http").info("two")
    own.info("three")
    assert [(line.get("upstream"), line.get("request_id")) for line in lines()] == [
        ("kis", "r-1"),
        ("kis", "r-2"),
        (None, None),
    ]


def test_levels_are_the_variables_and_a_second_configuration_takes_them_back(out, lines):
    """LOG_LEVEL for all, LOG_LEVELS for single loggers and what is below them."""
    config = Config.load({"LOG_LEVEL": "Warning", "LOG_LEVELS": "users.own=debug, noisy=ERROR"}, env_file=None)
    configure_logging(config.log.model_copy(update={"format": "json"}), stream=out)
    names = ("users.own.deeper", "noisy.one", "other")
    for name in names:
        logging.getLogger(name).debug("debug")
        logging.getLogger(name).warning("warning")
    assert [(line["logger"], line["level"]) for line in lines()] == [
        ("users.own.deeper", "debug"),
        ("users.own.deeper", "warning"),
        ("other", "warning"),
    ]
    configured(out)
    assert logging.getLogger("noisy").level == logging.NOTSET


@pytest.mark.parametrize("value", ["aegis", "aegis=loud", "=debug"])
def test_a_level_that_is_none_is_named(value):
    """As everything wrong in the environment, by variable."""
    with pytest.raises(ConfigError, match=r"LOG_LEVELS.*aegis\.http=debug"):
        Config.load({"LOG_LEVELS": value}, env_file=None)


class Shown:
    def __repr__(self):
        return "Shown(token='s3cret')"


class Unshowable:
    def __repr__(self):
        raise KeyError


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_secret_is_masked_wherever_it_stands(out, format_):
    """By name in text, fields, nested data, bytes and reprs; by value under any name; in tracebacks too."""
    secrets = secrets_of(
        Config.load(
            {
                "KIS_APP_KEY": "k3y-by-value",
                "DATABASE_URL": "postgresql://u:pass%2Dword@h/db",
                "REDIS_PASSWORD": "redis-pass",
            },
            env_file=None,
        )
    )
    assert secrets >= {"k3y-by-value", "pass-word", "pass%2Dword", "redis-pass"}
    own = configured(out, format=format_, secrets=[*secrets, SecretStr("own-one")], secret_names=["mine"])
    own.warning("k3y-by-value in text, mine=s3cret and %s", {"appkey": "s3cret"})
    own.info("x", extra={"data": {"list": [{"token": "s3cret"}, ("redis-pass",)]}, "mine": "s3cret", "raw": b"own-one"})
    own.info("x", extra={"thing": Shown(), "set": {"pass-word"}, "url": "http://h/?crtfc%5Fkey=s3cret&a=1"})
    try:
        raise ValueError("pass%2Dword, appsecret: s3cret")
    except ValueError:
        own.exception("failed")
        structlog.get_logger().exception("failed", cause=ValueError("token=s3cret"))
    text = out.getvalue()
    assert text.count("***") >= 12
    for secret in ("s3cret", "k3y-by-value", "pass-word", "pass%2Dword", "redis-pass", "own-one"):
        assert secret not in text
    assert "ValueError" in text


def test_a_line_that_cannot_be_formatted_is_said_without_its_arguments(out, lines):
    """The standard library would print the arguments as they are."""
    own = configured(out)
    own.warning("%d shares", "token=s3cret")
    own.warning("fine", extra={"bad": Unshowable(), "lone": "\ud800"})
    first, second = lines()
    assert (first["logger"], first["event"].split(" at ")[0]) == ("aegis.telemetry", "a line of users.own")
    assert second["bad"] == "<Unshowable whose repr fails with KeyError>"
    assert "s3cret" not in out.getvalue()


def test_nothing_forges_a_line_on_a_console(out):
    """Line breaks and escapes of the terminal are shown, not obeyed; a long text is cut, and says so."""
    own = configured(out, format="console")
    own.info("one\n2026 [critical] forged \x1b[31mred", extra={"field": "a\r\nb"})
    own.info("x" * 100_000)
    first, second = out.getvalue().splitlines()
    assert r"one\n2026 [critical] forged \x1b[31mred" in first
    assert r"a\r\nb" in first
    assert len(second) < 20_000
    assert "(83616 more characters)" in second


def test_an_exception_that_nobody_caught_is_a_line_like_any_other():
    """In the main thread and in others; masked; Ctrl-C stays what it is."""
    code = """
import threading
from aegis.config import LogConfig
from aegis.telemetry import configure_logging
configure_logging(LogConfig(format="json"))
def fail():
    raise ValueError("token=s3cret")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""
    lines = [json.loads(line) for line in stderr_of(code).splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("nobody caught ValueError", "critical")] * 2
    assert "token=***" in lines[0]["exception"]
    assert "s3cret" not in json.dumps(lines)


# --- folding ---


def test_a_burst_of_one_warning_is_a_few_lines_and_a_count(out, lines):
    """Five are written, the other 995 are one line with the newest of them, once the window is over; others pass."""
    own = configured(out, burst=5, burst_window=0.3)
    for number in range(1000):
        own.warning("connection %d lost", number)
    own.warning("another")
    own.info("connection %d found", 1)
    assert len(lines()) == 7
    until_sync(lambda: len(lines()) == 8)  # the timer's thread writes it
    assert (lines()[-1]["event"], lines()[-1]["folded"]) == ("connection 999 lost", 995)
    own.warning("connection %d lost", 1000)
    assert (lines()[-1]["event"], "folded" in lines()[-1]) == ("connection 1000 lost", False)


def test_what_is_not_the_same_is_not_folded(out, lines):
    """Errors each, debug lines each, other loggers, templates, upstreams and outcomes."""
    own = configured(out, burst=1, burst_window=60.0, level="debug")
    for number in range(3):
        own.error("order %d lost", number)
        own.debug("step %d", number)
        own.warning("lost", extra={"http_upstream": f"h{number}"})
        own.warning("lost", extra={"http_outcome": f"o{number}"})
        logging.getLogger(f"users.other{number}").warning("lost")
        structlog.get_logger("users.own").warning(f"event {number}")
    assert len(lines()) == 18
    structlog.get_logger("users.own").warning("event 0")
    assert len(lines()) == 18


def test_a_window_of_zero_folds_nothing(out, lines):
    """LOG_BURST_WINDOW=0."""
    own = configured(out, burst=1, burst_window=0.0)
    for _ in range(10):
        own.warning("same")
    assert len(lines()) == 10


def test_the_count_is_written_when_the_process_ends():
    """Also when the window is far from over."""
    code = """
import logging
from aegis.config import LogConfig
from aegis.telemetry import configure_logging
configure_logging(LogConfig(format="json", burst=2, burst_window=3600.0))
for _ in range(10):
    logging.getLogger("x").warning("same")
"""
    lines = [json.loads(line) for line in stderr_of(code).splitlines()]
    assert [line.get("folded") for line in lines] == [None, None, 8]


def test_many_different_warnings_cost_bounded_memory(out, lines):
    """The oldest are forgotten, and what they owe is written."""
    own = configured(out, burst=1, burst_window=3600.0)
    own.warning("first")
    own.warning("first")
    for number in range(1500):
        own.warning(f"template {number}")
    fold = logging.getLogger().handlers[0].filters[0]
    assert len(fold._bursts) <= 1000
    assert [line["folded"] for line in lines() if "folded" in line] == [1]
