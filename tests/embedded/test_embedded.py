"""Embedded servers answer, and never outlive whoever started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from aegis.embedded import EmbeddedPostgres, EmbeddedValkey
from aegis.errors import ServerStartError
from aegis.testing import until_sync

OWNER = """
import json, os, sys
from aegis.embedded import EmbeddedPostgres, EmbeddedValkey
with EmbeddedValkey() as valkey, EmbeddedPostgres() as postgres:
    pids, directories = [valkey.pid, postgres.pid], [os.path.dirname(valkey.socket), str(postgres.directory)]
    print(json.dumps([pids, directories]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_servers_and_directories_are_gone_when_their_owner_is_killed(end):
    """Nothing is orphaned, whatever signal ends the owner."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as owner:
        pids, directories = json.loads(owner.stdout.readline())
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert all(Path(directory).is_dir() for directory in directories)
        owner.send_signal(end)
    until_sync(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    until_sync(lambda: not any(Path(directory).exists() for directory in directories))


def test_killed_guardian_takes_its_server_with_it():
    """The last line of defence: even `kill -9` of the guardian leaves no server (Linux)."""
    with EmbeddedValkey() as server:
        pid = server.pid
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        until_sync(lambda: not psutil.pid_exists(pid))


def test_unusable_option_is_one_clear_error_and_leaves_nothing():
    """A server that cannot start says why, in its own words, and its directory is gone."""
    server = EmbeddedValkey(options={"no-such-option": "1"})
    with pytest.raises(ServerStartError, match=r"(?s)valkey did not start.*no-such-option"):
        server.start()
    with pytest.raises(ServerStartError, match=r"(?s)postgres did not start.*no_such_setting"):
        EmbeddedPostgres(options={"no_such_setting": "1"}).start()


def test_valkey_is_reachable_by_tcp_and_unix_socket(valkey_server):
    """Both ways in are open, and the unix socket is ours alone."""
    assert valkey_server.url.startswith("redis://127.0.0.1:")
    assert Path(valkey_server.socket).parent.stat().st_mode & 0o077 == 0


def test_stopping_twice_is_harmless():
    """`stop` is idempotent."""
    server = EmbeddedValkey()
    server.start()
    server.stop()
    server.stop()
