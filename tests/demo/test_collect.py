"""`aegis collect`: the pipeline on upstreams that are not ours, with the user's keys and servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Mapping

import pytest

from aegis.config import Config, DatabaseConfig, child_environ
from aegis.database import MIGRATIONS, Database
from aegis.demo.collect import checked_codes, plan
from aegis.upstream.simulator import Rules, Simulator

SECRETS = {"KIS_APP_KEY": "AppKeyNobodySees", "KIS_APP_SECRET": "AppSecretNobodySees", "DART_API_KEY": "d" * 40}
CODES = ("005930", "000660", "373220")


def settings(valkey, database_url: str, simulator: Simulator) -> dict[str, str]:
    urls = {"KIS_BASE_URL": simulator.url, "DART_BASE_URL": simulator.url}
    urls |= {"NAVER_BASE_URL": simulator.url, "NAVER_CHART_URL": simulator.url}
    shared = {"REDIS_URL": valkey.url, "DATABASE_URL": database_url, "DB_MIN_CONNS": "1", "DB_MAX_CONNS": "3"}
    return {**SECRETS, **urls, **shared, "AEGIS_PREFIX": f"collect-{uuid.uuid4().hex[:6]}"}


@pytest.fixture
async def database_url(postgres_server) -> str:
    """A database of its own, without any tables."""
    name = f"collect_{uuid.uuid4().hex[:8]}"
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=1, max_conns=1)) as db:
        await db.execute(f"create database {name}")
    head, _, query = postgres_server.url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}{'?' * bool(query)}{query}"


async def start(*args: str, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aegis", "collect", *args, "--env-file", os.devnull,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=child_environ(environ),
    )  # fmt: skip


async def end(process: asyncio.subprocess.Process) -> tuple[str, str]:
    out, err = await process.communicate()
    for secret in SECRETS.values():
        assert secret not in (out + err).decode()
    assert b"Traceback" not in err
    return out.decode(), err.decode()


async def test_a_dry_run_says_what_it_would_do_and_asks_nobody(valkey_server, database_url):
    """Hosts, limits, tables, the time of one walk; as text and as JSON."""
    async with Simulator() as simulator:
        environ = settings(valkey_server, database_url, simulator)
        out, _ = await end(await start(*CODES, "--dry-run", environ=environ))
        for part in (simulator.url.partition("//")[2], "kis: 5 in 1 s", "dart: 100 in 60 s", "daily_prices", "3 codes"):
            assert part in out
        out, _ = await end(
            await start(",".join(CODES), "--dry-run", "--json", environ={**environ, "KIS_IS_VIRTUAL": "1"})
        )
        assert (json.loads(out)["account"], json.loads(out)["walk_s"]) == ("paper", 3.0)
        report = simulator.report()
        assert [report[name]["requests"] for name in ("kis", "dart", "naver")] == [0, 0, 0]
        assert report["tokens_issued"] == 0


@pytest.mark.timeout(240)
async def test_two_commands_share_everything_and_end_in_order(valkey_server, database_url):
    """One token, no refusal, rows in the tables; Ctrl-C finishes what is in hand and exits with 0."""
    async with Database(DatabaseConfig(url=database_url, min_conns=1, max_conns=1)) as db:
        await db.migrate(MIGRATIONS)
        # Two that shared nothing would send ten a second; one more or less is the business of the limiter's own tests.
        async with Simulator(rules=Rules(naver_polling_s=1.0, kis_per_second=8)) as simulator:
            environ = settings(valkey_server, database_url, simulator)
            collectors = [await start(*CODES, "--json", environ=environ) for _ in range(2)]
            async with asyncio.timeout(60):
                while simulator.report()["kis"]["requests"] < 12 or not simulator.report()["naver"]["requests"]:
                    await asyncio.sleep(0.1)
            for collector in collectors:
                collector.send_signal(signal.SIGINT)
            counts = [json.loads((await end(collector))[0]) for collector in collectors]
            assert [collector.returncode for collector in collectors] == [0, 0]
            report = simulator.report()
            assert [report[name]["rejected"] for name in ("kis", "dart", "naver")] == [0, 0, 0]
            assert (report["tokens_issued"], report["tokens_refused"], report["violations"]) == (1, 0, [])
            assert report["dart"]["requests"] <= 3, "the list of companies and today's news, once for both"
        assert [each["failures"] for each in counts] == [0, 0]
        rows = await db.fetch("select code, source from quotes")
        assert {row["code"] for row in rows} == set(CODES)
        assert sum(each["prices"] for each in counts) >= 8, "the others are charts"


@pytest.mark.timeout(120)
async def test_wrong_credentials_end_it_at_once(valkey_server, database_url):
    """Every further request would be one with a wrong key: one line that names the variables, exit code 1."""
    async with Database(DatabaseConfig(url=database_url, min_conns=1, max_conns=1)) as db:
        await db.migrate(MIGRATIONS)
    async with Simulator() as simulator:
        simulator.state.tokens.knows(SECRETS["KIS_APP_KEY"], "another secret")
        process = await start(*CODES, environ=settings(valkey_server, database_url, simulator))
        _, err = await end(process)
        assert process.returncode == 1
        assert "check KIS_APP_KEY and KIS_APP_SECRET" in err.splitlines()[-1]


async def test_what_is_missing_is_said_before_anything_is_asked(valkey_server, database_url):
    """Variables all at once (78), tables with the command that makes them (1), codes (2)."""
    async with Simulator() as simulator:
        environ = settings(valkey_server, database_url, simulator)
        bare = {name: value for name, value in environ.items() if name not in SECRETS}
        process = await start(*CODES, environ=bare)
        _, err = await end(process)
        assert process.returncode == 78
        assert all(name in err for name in SECRETS)
        process = await start(*CODES, environ=environ)
        _, err = await end(process)
        assert process.returncode == 1
        assert "aegis db migrate" in err
        process = await start("samsung", environ=environ)
        _, err = await end(process)
        assert process.returncode == 2
        assert "'samsung' is no stock code" in err
        assert simulator.report()["kis"]["requests"] == 0


def test_codes_are_texts_each_once_in_order():
    """With commas, blanks, letters in the newer ones; never numbers."""
    assert checked_codes(["005930,000660", " 0098K0\n005930 "]) == ("005930", "000660", "0098K0")
    for wrong in ([""], ["5930"], ["005930,abc"]):
        with pytest.raises(ValueError, match="stock code"):
            checked_codes(wrong)


def test_a_plan_for_a_paper_account_names_its_limit():
    """1/s: forty codes take forty seconds."""
    config = Config.load({**SECRETS, "KIS_IS_VIRTUAL": "true"}, env_file=None)
    what = plan(config, ["005930"] * 40)
    assert (what.account, what.walk_s) == ("paper", 40.0)
    assert what.upstreams[0].host == "openapivts.koreainvestment.com:29443"
    assert not any(secret in str(what) for secret in SECRETS.values())
