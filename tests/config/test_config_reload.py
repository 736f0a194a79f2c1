"""Reading again: what differs, what is taken over, and what waits for a restart."""

from __future__ import annotations

import pytest

from aegis.config import Config, registry
from aegis.errors import ConfigError

BASE = {"REDIS_DB": "1", "KIS_APP_SECRET": "hidden-one", "LOG_LEVEL": "info"}


def test_only_live_variables_are_taken_over():
    """The level of the log changes; the database waits; the running object stays what it was."""
    running = Config.load(BASE, None)
    reloaded = running.reload({**BASE, "REDIS_DB": "2", "LOG_LEVEL": "debug"}, None)
    assert (reloaded.config.log.level, reloaded.config.redis.db) == ("debug", 1)
    assert [change.variable for change in reloaded.changes] == ["REDIS_DB", "LOG_LEVEL"]
    assert [str(change) for change in reloaded.waiting] == ["REDIS_DB: 1 -> 2"]
    assert (running.log.level, running.redis.db) == ("info", 1)


def test_nothing_changed_is_nothing_to_do():
    """No change, the same configuration."""
    running = Config.load(BASE, None)
    reloaded = running.reload(BASE, None)
    assert (reloaded.config, reloaded.changes) == (running, ())


def test_a_changed_secret_is_told_but_not_shown():
    """It waits for a restart."""
    [change] = Config.load(BASE, None).reload({**BASE, "KIS_APP_SECRET": "hidden-two"}, None).waiting
    assert str(change) == "KIS_APP_SECRET: *** -> ***"


def test_what_cannot_be_read_changes_nothing():
    """The error of `load`; the caller goes on with what it has."""
    with pytest.raises(ConfigError, match="LOG_LEVEL"):
        Config.load(BASE, None).reload({"LOG_LEVEL": "loud"}, None)


def test_no_secret_and_no_server_is_live():
    """Pools and secrets are never exchanged under a running process."""
    assert {variable.name for variable in registry() if variable.live} == {"LOG_LEVEL", "LOG_LEVELS", "LOG_FORMAT"}


def test_fingerprints_are_equal_for_equal_values_whatever_their_source(tmp_path):
    """Secrets do not count, every other variable does."""
    (file := tmp_path / ".env").write_text("REDIS_DB=1\n")
    base = Config.load({"REDIS_DB": "1"}, None).fingerprint()
    assert Config.load({}, file).fingerprint() == base
    assert Config.load({"REDIS_DB": "1", "KIS_APP_KEY": "x"}, None).fingerprint() == base
    assert Config.load({"REDIS_URL": "redis://localhost/1"}, None).fingerprint() == base
    assert Config.load({"REDIS_DB": "2"}, None).fingerprint() != base
    assert len(base) == 12
