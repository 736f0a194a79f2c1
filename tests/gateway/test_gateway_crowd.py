"""A thousand clients, fifty of which never read: the others notice nothing, and the fifty are closed."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

import pytest

CROWD = Path(__file__).parent / "browser_crowd.py"
CLIENTS, DEAF = 1000, 50
KEYS, PADDING = 5, "x" * 500


@pytest.mark.timeout(150)  # a thousand connections on a busy machine
async def test_a_thousand_clients_of_which_fifty_never_read(bus, serve, monkeypatch):
    """All readers get the newest value of every round; the deaf hold one event each, and are evicted, nobody else."""
    monkeypatch.setattr("aegis.gateway.stream.SEND_BUFFER_BYTES", 8192)  # soon full, for who does not read
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    async with serve(stalled_max_s=3.0, flush_s=0.1) as (gateway, url):
        host, port = url.split("/")[2].split(":")
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, CROWD, host, port, str(CLIENTS), str(DEAF),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:

            async def slowest() -> int:
                line = await asyncio.wait_for(crowd.stdout.readline(), 50)
                crowd.stdin.write(b"\n")
                said = json.loads(line)
                assert said["ended"] == 0
                return said["slowest"]

            await slowest()  # all are connected
            assert gateway.stats().clients == CLIENTS
            rounds = 0
            async with asyncio.timeout(100):
                while gateway.stats().evicted < DEAF:
                    rounds += 1
                    for key in range(KEYS):
                        await bus.publish(f"k{key}", [rounds, PADDING])
                    await bus.flush()
                    while await slowest() < rounds:
                        await asyncio.sleep(0.05)
        finally:
            crowd.kill()
            await crowd.wait()
        assert gateway.stats().evicted == DEAF
