"""Every refusal of the three can be switched on, from a test and from the command line, and looks as recorded."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest
from typer.testing import CliRunner

from aegis.cli import sim
from aegis.upstream.simulator import Fault, Rules, Simulator

PRICE = "/uapi/domestic-stock/v1/quotations/inquire-price"
STOCK = {"FID_COND_MRKT_DIV_CODE": "J", "FID_INPUT_ISCD": "005930"}
KEYS = {"appkey": "key", "appsecret": "secret"}
DART_KEY = "0" * 40
QUOTE = "/api/realtime/domestic/stock/005930"
COMPANY = f"/api/company.json?crtfc_key={DART_KEY}&corp_code=00000000"


class Browser:
    """A client without any mercy: no limit, no retry."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def get(self, path: str, **options) -> tuple[int, str, bytes]:
        async with self.session.get(f"{self.url}{path}", **options) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.read()

    async def token(self) -> tuple[int, dict]:
        asked = {"grant_type": "client_credentials", **KEYS}
        async with self.session.post(f"{self.url}/oauth2/tokenP", json=asked) as answer:
            return answer.status, await answer.json()

    async def price(self, token: str, tr_id: str = "FHKST01010100") -> tuple[int, dict]:
        headers = {**KEYS, "authorization": f"Bearer {token}", "tr_id": tr_id}
        status, _, body = await self.get(PRICE, params=STOCK, headers=headers)
        return status, json.loads(body)

    async def control(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        async with self.session.request(method, f"{self.url}/_sim/{path}", json=body) as answer:
            return answer.status, await answer.text()


@asynccontextmanager
async def browser_at(url: str):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield Browser(session, url)


@asynccontextmanager
async def in_this_process(rules: list[str], faults: list[str]):
    """As a test does it."""
    changed = Rules()
    for text in rules:
        changed = changed.with_text(text)
    async with Simulator(rules=changed) as simulator:
        for text in faults:
            fault = Fault.parse(text)
            options = {name: getattr(fault, name) for name in ("service", "path", "times", "every", "code", "seconds")}
            simulator.fail(fault.kind, **options)
        async with browser_at(simulator.url) as browser:
            yield browser


@asynccontextmanager
async def command_line(*options: str):
    """`aegis sim` with these options."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aegis", "sim", "--json", "--exit-with-stdin", *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with browser_at(json.loads(await process.stdout.readline())["kis"]) as browser:
            yield browser
    finally:
        process.stdin.close()
        assert await process.wait() == 0


def from_the_command_line(rules: list[str], faults: list[str]):
    """As somebody does who writes in another language."""
    pairs = [("--rule", text) for text in rules] + [("--fault", text) for text in faults]
    return command_line(*(word for pair in pairs for word in pair))


@pytest.fixture(params=[in_this_process, from_the_command_line])
def switched_on(request):
    return request.param


async def test_what_goes_wrong_on_the_way(switched_on):
    """Blank 500s, codes, pages, wrong charsets, drips, cuts, resets and silence: each once, then all is well."""
    faults = [
        "blank-500,service=kis,path=inquire-price,times=1",
        "code,code=EGW00316,service=kis,path=inquire-price,times=1",
        "html,service=kis,path=inquire-price,times=1",
        "wrong-charset,service=dart,times=1",
        "maintenance,service=dart,times=1",
        "reset,service=dart,times=2",  # the client under this test sends a GET again by itself
        "drip,service=naver,times=1,seconds=0.001",
        "cut,service=naver,times=1",
        "hang,service=naver,times=1",
        "slow,service=naver,times=1,seconds=0.3",
    ]
    async with switched_on([], faults) as browser:
        _, issued = await browser.token()
        token = issued["access_token"]
        assert await browser.price(token) == (500, {"rt_cd": "1", "msg_cd": "", "msg1": ""})
        assert (await browser.price(token))[1]["msg_cd"] == "EGW00316"
        assert b"<html>" in (await browser.get(PRICE, params=STOCK, headers=KEYS))[2]
        assert (await browser.price(token))[0] == 200

        _, said, body = await browser.get(COMPANY)
        assert said == "application/json; charset=utf-8"
        assert json.loads(body.decode("cp949"))["message"] == "조회된 데이타가 없습니다."
        assert json.loads((await browser.get(COMPANY))[2])["status"] == "800"
        with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
            await browser.get(COMPANY)
        assert json.loads((await browser.get(COMPANY))[2])["status"] == "013"

        assert json.loads((await browser.get(QUOTE))[2])["datas"]
        with pytest.raises(aiohttp.ClientPayloadError):
            await browser.get(QUOTE)
        with pytest.raises(TimeoutError):
            await browser.get(QUOTE, timeout=aiohttp.ClientTimeout(total=0.2))
        with pytest.raises(TimeoutError):
            await browser.get(QUOTE, timeout=aiohttp.ClientTimeout(total=0.1))
        assert json.loads((await browser.get(QUOTE))[2])["datas"]
        happened = json.loads((await browser.control("GET", "report"))[1])["faults"]
        assert sum(happened.values()) == len(faults) + 1


async def test_who_leaves_a_drip_is_no_fault_of_the_simulators(caplog):
    """Few clients read to the end; nothing is printed about those who do not."""
    async with in_this_process([], ["drip,service=naver,seconds=0.001"]) as browser:
        async with browser.session.get(f"{browser.url}{QUOTE}") as answer:
            assert await answer.content.readexactly(1)
            handlers = {task for task in asyncio.all_tasks() if "RequestHandler" in repr(task.get_coro())}
        assert handlers
        await asyncio.wait(handlers, timeout=5)
    assert caplog.records == []


async def test_maintenance_voids_every_token_and_a_second_one_within_the_minute_is_refused():
    """EGW00121 in a 500 for who has one; 403 EGW00133, in other fields, for who asks for the next too soon."""
    async with in_this_process([], ["maintenance,service=kis,path=inquire-price,every=2"]) as browser:
        status, issued = await browser.token()
        assert (status, issued["token_type"]) == (200, "Bearer")
        assert (await browser.price(issued["access_token"]))[0] == 200
        status, body = await browser.price(issued["access_token"])
        assert (status, body["msg_cd"]) == (500, "EGW00121")
        status, body = await browser.token()
        assert (status, body["error_code"]) == (403, "EGW00133")


async def test_the_quotas_of_dart_and_its_block():
    """020 for the day's quota as for the minute's; above the block's limit connections are reset, and stay so."""
    async with in_this_process(["dart_per_day=2", "dart_block_per_minute=3"], []) as browser:
        statuses = [json.loads((await browser.get(COMPANY))[2])["status"] for _ in range(3)]
        assert statuses == ["013", "013", "020"]
        for _ in range(2):
            with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
                await browser.get(COMPANY)


@pytest.mark.parametrize(("account", "per_second"), [("--paper", 1), ("--new-customer", 3)])
async def test_lower_accounts_have_options_of_their_own(account, per_second):
    """Paper 1/s, a new customer 3/s: one more within the second is refused with EGW00201 in a 500; with a `--rule`."""
    async with command_line(account, "--rule", "naver_per_second=1") as browser:
        assert [(await browser.get(QUOTE))[0] for _ in range(2)] == [200, 403]
        answers = [await browser.get(PRICE, headers=KEYS) for _ in range(per_second + 1)]
        assert [b"EGW00201" in body for _, _, body in answers] == [False] * per_second + [True]
        assert answers[-1][0] == 500


async def test_a_running_simulator_is_changed_over_http():
    """Faults on and off, rules, tokens, the report; what cannot be read is a 400 that says so."""
    async with Simulator() as simulator, browser_at(simulator.url) as browser:
        assert (await browser.control("POST", "rules", {"naver_per_second": 1}))[0] == 204
        assert [(await browser.get(QUOTE))[0] for _ in range(2)] == [200, 403]
        assert (await browser.control("POST", "rules", {"naver_per_second": 100}))[0] == 204
        assert (await browser.control("POST", "faults", [{"kind": "html", "service": "naver"}]))[0] == 204
        assert b"<html>" in (await browser.get(QUOTE))[2]
        assert (await browser.control("DELETE", "faults"))[0] == 204
        assert json.loads((await browser.get(QUOTE))[2])["datas"]
        token = (await browser.token())[1]["access_token"]
        assert (await browser.control("POST", "void-tokens"))[0] == 204
        assert (await browser.price(token))[1]["msg_cd"] == "EGW00121"
        assert (await browser.control("POST", "reset"))[0] == 204
        assert json.loads((await browser.control("GET", "report"))[1])["naver"]["requests"] == 0
        for path, wrong in (("rules", {"naver_per_second": 0}), ("rules", {"x": 1}), ("faults", [{"kind": "fire"}])):
            status, said = await browser.control("POST", path, wrong)
            assert (status, bool(said)) == (400, True), said


@pytest.mark.parametrize(
    ("option", "wrong", "says"),
    [
        ("--rule", "kis_per_second=0", "kis_per_second=0 must be at least 1"),
        ("--rule", "speed=5", "speed: none of the rules kis_per_second"),
        ("--rule", "dart_per_day=many", "dart_per_day"),
        ("--fault", "fire", "kinds are reset, hang"),
        ("--fault", "reset,times=0", "times"),
        ("--fault", "reset,planet=mars", "'planet=mars' is none of service="),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_error(option, wrong, says):
    """Exit code 2, what is wrong, what there is."""
    done = CliRunner().invoke(sim.app, [option, wrong])
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())


async def test_it_says_where_it_listens_and_in_the_end_what_it_saw():
    """Plain text for people: the address, what to export; Ctrl-C ends it well, with its counts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aegis", "sim", "--rule", "naver_per_second=1", stdout=asyncio.subprocess.PIPE
    )
    url = (await process.stdout.readline()).split()[-1].decode()
    shown = (await process.stdout.readuntil(b"Ctrl-C ends it\n")).decode()
    for name in ("KIS_BASE_URL", "DART_BASE_URL", "NAVER_BASE_URL", "NAVER_CHART_URL"):
        assert f"{name}={url}" in shown
    async with browser_at(url) as browser:
        for _ in range(2):
            await browser.get(QUOTE)
    process.send_signal(signal.SIGINT)
    seen = (await process.stdout.read()).decode()
    assert await process.wait() == 0
    assert "naver              2 requests, 1 refused, at most 2 in 1 s (limit 1)" in seen
