"""The doctor sees what is wrong with real servers, says what to do, and changes nothing."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from aegis.config import Config, examine
from aegis.doctor import AREAS, Finding, Verdict, examine_all
from aegis.doctor.ports import examine_ports
from aegis.doctor.postgres import examine_postgres
from aegis.doctor.redis import examine_redis
from aegis.doctor.upstreams import examine_upstreams
from aegis.embedded import EmbeddedCluster, EmbeddedPostgres, EmbeddedValkey, free_port
from aegis.redis import Rate, RateLimit, Redis
from aegis.runtime import Runtime
from aegis.testing import FaultProxy
from aegis.upstream.simulator import Market, Simulator

SECRET = "zq-do-not-show"
NO_UPSTREAM = dict.fromkeys(
    ("KIS_BASE_URL", "DART_BASE_URL", "NAVER_BASE_URL", "NAVER_CHART_URL"), "http://127.0.0.1:1"
)


async def seen(findings) -> dict[str, Finding]:
    found = [finding async for finding in findings]
    assert all(finding.remedy for finding in found if finding.verdict in {Verdict.WARNING, Verdict.FAILED})
    assert not any(SECRET in str(finding) for finding in found)
    return {finding.check: finding for finding in found}


async def redis_findings(**environ: str) -> dict[str, Finding]:
    return await seen(examine_redis(Config.load(environ, None).redis, "aegis"))


async def postgres_findings(**environ: str) -> dict[str, Finding]:
    return await seen(examine_postgres(Config.load(environ, None).database))


def not_ok(found: dict[str, Finding]) -> set[str]:
    """Everything but the latency, which a busy machine may spoil."""
    return {check for check, finding in found.items() if finding.verdict is not Verdict.OK} - {"latency"}


async def test_a_good_redis_is_good(valkey_server):
    """Every line is there, and only persistence (switched off in tests) is a warning."""
    found = await redis_findings(REDIS_URL=valkey_server.url)
    assert not_ok(found) == {"persistence"}
    assert found["version"].seen.startswith("Valkey 9.")
    assert "ms median" in found["latency"].seen
    assert found.keys() >= {
        "connection",
        "role",
        "memory",
        "maxmemory-policy",
        "clients",
        "clock",
        "scripts",
        "broadcast",
    }


async def test_a_look_leaves_nothing_behind(valkey_server, redis):
    """One key that is gone after a second, no connection."""
    before = await redis.execute("CLIENT", "LIST")
    await redis_findings(REDIS_URL=valkey_server.url)
    assert [await redis.execute("PTTL", key) <= 1000 for key in await redis.execute("KEYS", "*")] in ([], [True])
    assert len((await redis.execute("CLIENT", "LIST")).splitlines()) == len(before.splitlines())


async def test_a_slow_way_to_the_server_is_told(valkey_server):
    """Each permit pays it."""
    async with FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy:
        proxy.slow(0.01)
        found = await redis_findings(REDIS_URL=proxy.url)
    assert found["latency"].verdict is Verdict.WARNING


async def test_eviction_snapshots_and_a_full_server_are_told():
    """What loses limits and tokens is a failure, with the remedy."""
    options = {"maxmemory": "3mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no"}
    with EmbeddedValkey(options=options) as server:
        found = await redis_findings(REDIS_URL=server.url)
        assert found["maxmemory-policy"].verdict is Verdict.FAILED
        assert "noeviction" in found["maxmemory-policy"].remedy
        async with Redis(Config.load({"REDIS_URL": server.url}, None).redis) as redis:
            await redis.execute("CONFIG", "SET", "maxmemory", "0")
            assert (await redis_findings(REDIS_URL=server.url))["maxmemory-policy"].verdict is Verdict.WARNING
            await redis.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
            await redis.execute("CONFIG", "SET", "maxmemory", "1mb")
        found = await redis_findings(REDIS_URL=server.url)
        assert (found["maxmemory-policy"].verdict, found["memory"].verdict) == (Verdict.OK, Verdict.WARNING)


async def test_a_replica_and_an_append_only_file_are_told(valkey_server):
    """A replica refuses writes; the primary is named."""
    options = {"replicaof": f"127.0.0.1 {valkey_server.port}", "appendonly": "yes"}
    with EmbeddedValkey(options=options) as server:
        found = await redis_findings(REDIS_URL=server.url)
    assert found["role"].verdict is Verdict.FAILED
    assert f"127.0.0.1:{valkey_server.port}" in found["role"].remedy
    assert found["persistence"].verdict is Verdict.OK


async def test_a_cluster_is_looked_at_as_a_whole():
    """Every line works through the cluster's client, and its state is told."""
    with EmbeddedCluster(replicas=0) as cluster:
        found = await redis_findings(REDIS_URL=cluster.url)
    assert not_ok(found) == {"persistence"}
    assert "3 nodes, 16384 slots" in found["cluster"].seen


async def test_what_an_acl_user_may_not_do_is_named(valkey_server, redis):
    """Scripts, channels, INFO and TIME: each with what to allow. The password is not shown."""
    await redis.execute("ACL", "SETUSER", "small", "reset", "on", f">{SECRET}", "+ping", "+client", "+hello", "+auth")
    user = {"REDIS_URL": valkey_server.url, "REDIS_USERNAME": "small", "REDIS_PASSWORD": SECRET}
    try:
        found = await redis_findings(**user)
        for check in ("scripts", "broadcast", "clock"):
            assert found[check].verdict is Verdict.FAILED
            assert "+" in found[check].remedy
        assert found["server"].verdict is Verdict.WARNING
        wrong = await redis_findings(**user | {"REDIS_PASSWORD": f"{SECRET}-wrong"})
        assert "REDIS_PASSWORD" in wrong["connection"].remedy
    finally:
        await redis.execute("ACL", "DELUSER", "small")


async def test_redis_that_cannot_be_reached_is_told_apart():
    """Refused, unknown, hung, disabled, embedded."""
    refused = (await redis_findings(REDIS_HOST="127.0.0.1", REDIS_PORT="1"))["connection"]
    assert refused.verdict is Verdict.FAILED
    assert "127.0.0.1:1" in refused.seen
    assert "aegis up" in refused.remedy
    unknown = (await redis_findings(REDIS_HOST="no.such.host.invalid"))["connection"]
    assert "cannot be resolved" in unknown.remedy
    with EmbeddedValkey(port=0) as server:
        async with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
            proxy.freeze()
            hung = (await redis_findings(REDIS_URL=proxy.url, REDIS_CONNECT_TIMEOUT="200ms"))["connection"]
    assert hung.verdict is Verdict.FAILED
    assert (await redis_findings(REDIS_ENABLED="false"))["connection"].verdict is Verdict.WARNING
    assert (await redis_findings(REDIS_URL="embedded:"))["connection"].verdict is Verdict.OK


async def test_a_good_postgres_is_good_but_not_migrated():
    """Every line is there; what is pending is named with the command."""
    with EmbeddedPostgres() as server:
        found = await postgres_findings(DATABASE_URL=server.url)
        assert not_ok(found) == {"migrations"}
        assert "aegis db migrate" in found["migrations"].remedy
        assert found["version"].seen.startswith("18.")
        assert found.keys() >= {"connection", "latency", "role", "connections", "time zone", "clock", "encoding"}
        many = await postgres_findings(DATABASE_URL=server.url, DB_MAX_CONNS="1000")
        assert "lower DB_MAX_CONNS" in many["connections"].remedy
        missing = await postgres_findings(DATABASE_URL=server.url.replace("/postgres?", "/nowhere?"))
        assert "createdb" in missing["connection"].remedy


async def test_a_postgres_of_another_time_zone_is_a_warning():
    """Dates of timestamps differ."""
    with EmbeddedPostgres(options={"timezone": "America/New_York"}) as server:
        found = await postgres_findings(DATABASE_URL=server.url)
    assert found["time zone"].verdict is Verdict.WARNING
    assert found["time zone"].seen == "America/New_York"


async def test_postgres_that_cannot_be_reached_is_told():
    """Address, cause, remedy; the password is not shown."""
    environ = {"DATABASE_URL": f"postgresql://me:{SECRET}@127.0.0.1:1/x"}
    refused = (await postgres_findings(**environ))["connection"]
    assert refused.verdict is Verdict.FAILED
    assert "127.0.0.1:1" in refused.seen
    assert (await postgres_findings(DATABASE_URL="embedded:"))["connection"].verdict is Verdict.OK


async def test_upstreams_are_reached_over_tls_and_certificates_are_read(tmp_path, monkeypatch):
    """A good one tells its days; an unknown authority, a silent port and a missing name are told apart."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    environ = {
        "KIS_BASE_URL": f"https://localhost:{port}",
        "DART_BASE_URL": "http://127.0.0.1:1",
        "NAVER_BASE_URL": "https://no.such.host.invalid",
        "NAVER_CHART_URL": f"https://localhost:{port}",
        "KIS_APP_KEY": SECRET,
    }
    config = Config.load(environ, None)
    async with server:
        found = await seen(examine_upstreams(config, request=False))
        assert found["KIS host"].verdict is Verdict.FAILED
        assert "SSL_CERT_FILE" in found["KIS host"].remedy
        assert found["DART host"].verdict is Verdict.WARNING
        assert "DART_API_KEY is not set" in found["DART host"].seen
        assert "cannot be resolved" in found["Naver host"].seen
        assert found["requests"].verdict is Verdict.SKIPPED
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        found = await seen(examine_upstreams(config, request=False))
    assert found["KIS host"].verdict is Verdict.OK
    assert "TLSv1.3, certificate for" in found["KIS host"].seen


async def test_with_consent_each_upstream_gets_one_request(valkey_server, redis):
    """Through the shared limit and token; what has no credentials is skipped; a refusal is told."""
    async with Simulator(Market.generated()) as simulator:
        hosts = dict.fromkeys(NO_UPSTREAM, simulator.url)
        environ = {"REDIS_URL": valkey_server.url, **hosts, "KIS_APP_KEY": SECRET, "KIS_APP_SECRET": SECRET}
        found = await seen(examine_upstreams(Config.load(environ, None), request=True))
        assert found["KIS request"].verdict is Verdict.OK
        assert found["Naver request"].verdict is Verdict.OK
        assert found["DART request"].verdict is Verdict.SKIPPED
    found = await seen(examine_upstreams(Config.load({**environ, **NO_UPSTREAM}, None), request=True))
    assert found["Naver request"].verdict is Verdict.FAILED
    found = await seen(examine_upstreams(Config.load({**environ, "REDIS_URL": "embedded:"}, None), request=True))
    assert found["requests"].verdict is Verdict.SKIPPED


async def test_ports_that_are_taken_are_named():
    """With the variable to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        config = Config.load({"PORT": port, "METRICS_ENABLED": "true", "METRICS_PORT": "0"}, None)
        found = await seen(examine_ports(config))
    assert found["PORT"].verdict is Verdict.FAILED
    assert port in found["PORT"].remedy
    assert found["METRICS_PORT"].verdict is Verdict.OK
    same = Config.load({"PORT": "8089", "METRICS_ENABLED": "true", "METRICS_PORT": "8089"}, None)
    assert (await seen(examine_ports(same)))["METRICS_PORT"].verdict is Verdict.FAILED


async def test_a_metrics_port_may_be_shared_with_our_own_kind(valkey_server):
    """Processes of one host share it; anybody else who listens there is in the way."""
    environ = {"REDIS_URL": valkey_server.url, "METRICS_ENABLED": "true", "METRICS_PORT": str(free_port()), "PORT": "0"}
    async with Runtime(config := Config.load(environ, None), database=False):
        assert (await seen(examine_ports(config)))["METRICS_PORT"].verdict is Verdict.OK
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", config.metrics.port)
    async with server:
        assert (await seen(examine_ports(config)))["METRICS_PORT"].verdict is Verdict.FAILED


async def test_a_bad_configuration_is_all_that_is_looked_at():
    """Nothing else can be."""
    found = [finding async for finding in examine_all(examine({"REDIS_DB": "x", "KIS_APP_KEYS": SECRET}, None))]
    assert [(finding.area, finding.check) for finding in found] == [
        ("configuration", "KIS_APP_KEYS"),
        ("configuration", "REDIS_DB"),
    ]


async def test_areas_are_told_in_order():
    """However long each takes."""
    environ = {"REDIS_URL": "embedded:", "DATABASE_URL": "embedded:", **NO_UPSTREAM, "PORT": "0"}
    areas = [finding.area async for finding in examine_all(examine(environ, None))]
    assert list(dict.fromkeys(areas)) == list(AREAS)


@pytest.mark.parametrize("area", AREAS[1:])
async def test_one_area_is_looked_at_alone(area):
    """What was not asked for is not touched."""
    environ = {"REDIS_URL": "embedded:", "DATABASE_URL": "embedded:", **NO_UPSTREAM, "PORT": "0"}
    findings = examine_all(examine(environ, None), areas=[area])
    assert {finding.area async for finding in findings} == {area}


async def test_the_acl_of_the_operations_page_is_enough(valkey_server, redis):
    """Limits, cache with its in-process tier, tags, and broadcast work for a user with just that."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    commands, keys, channels = re.search(
        r"ACL of the user \| `([^`]+)`, keys `([^`]+)`, channels `([^`]+)`", page
    ).groups()
    rules = [*commands.split(), keys, channels]
    await redis.execute("ACL", "SETUSER", "aegis-user", "reset", "on", f">{SECRET}", *rules)
    user = {"REDIS_URL": valkey_server.url, "REDIS_USERNAME": "aegis-user", "REDIS_PASSWORD": SECRET}
    try:
        config = Config.load(user, None)
        async with Runtime(config, database=False) as rt:
            limit = RateLimit("acl", Rate(5, per=1))
            assert (await rt.limiter.allow(limit)).allowed
            assert await rt.limiter.wait(limit, timeout=5) < 5
            await rt.limiter.hold(limit, 0.01)
            await rt.cache.set("k", 1, ttl=60, tags=("t",))
            assert await rt.cache.get("k", int) == 1
            assert await rt.cache.get_or_set("l", lambda: asyncio.sleep(0, 2), int, ttl=60) == 2
            await rt.cache.invalidate("t")
            assert await rt.cache.get("k", int) is None
            async with rt.bus.subscribe("005930", type=int) as updates:
                await rt.bus.publish("005930", 71_000, urgent=True)
                assert (await asyncio.wait_for(anext(aiter(updates)), 10)).value == 71_000
        found = await redis_findings(**user)
        assert not_ok(found) <= {"persistence"}
    finally:
        await redis.execute("ACL", "DELUSER", "aegis-user")
