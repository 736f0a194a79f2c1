"""
What does one GET cost with everything on, over a bare aiohttp session?

floor   aiohttp: a session, `get`, `read`; no retry, no breaker, no redaction.
rivals  httpx2 and httpx, bare as well, their own log line (which holds the URL) switched off.
ours    HttpClient: deadline, retry, budget, breaker, redaction, classification by a profile, logging at INFO.

Each client lives in a process of its own and is asked in turn, round by round, so that a noisy machine is noisy for
all; quoted are medians of the ratios within a round. Every answer is compared with what the server has, so a wrong one
cannot look fast. The server is nginx where it is installed, else an asyncio protocol in a process of its own. CPU is
that of the client's process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._report import median, options, ratio, report, show, spread

BODY = json.dumps(
    {
        "rt_cd": "0",
        "msg_cd": "MCA00000",
        "msg1": "정상처리 되었습니다.",
        "output": dict.fromkeys(("stck_prpr", "stck_oprc", "stck_hgpr", "stck_lwpr", "acml_vol", "prdy_vrss"), "71900"),
    }
).encode()
PARAMS = {"FID_COND_MRKT_DIV_CODE": "J", "FID_INPUT_ISCD": "005930"}
HEADERS = {
    "authorization": "Bearer eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzUxMiJ9.benchmark",
    "appkey": "PSbenchmarkbenchmarkbenchmarkbench",
    "appsecret": "benchmarkbenchmarkbenchmarkbenchmarkbenchmark",
    "tr_id": "FHKST01010100",
}
CLIENTS = ("aiohttp", "aegis", "httpx2", "httpx")


# --- the clients: each gives an async callable that fetches once and checks ---


@contextlib.asynccontextmanager
async def bare_aiohttp(url, tasks):
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=tasks)) as session:

        async def fetch():
            async with session.get(url, params=PARAMS, headers=HEADERS) as response:
                return response.status, await response.read()

        yield fetch


@contextlib.asynccontextmanager
async def bare_httpx(url, tasks, module="httpx"):
    library = __import__(module)
    logging.getLogger(module).setLevel(logging.WARNING)
    limits = library.Limits(max_connections=tasks, max_keepalive_connections=tasks)
    async with library.AsyncClient(limits=limits) as client:

        async def fetch():
            response = await client.get(url, params=PARAMS, headers=HEADERS)
            return response.status_code, response.content

        yield fetch


@contextlib.asynccontextmanager
async def ours(url, tasks):
    import msgspec

    from aegis.config import HttpConfig
    from aegis.http import HttpClient, Ok, Profile, Throttled, Transient

    class Envelope(msgspec.Struct):
        rt_cd: str
        msg_cd: str

    envelope = msgspec.json.Decoder(Envelope)

    def classify(_request, response):
        try:
            body = envelope.decode(response.content)
        except msgspec.DecodeError:
            return Transient()
        return Ok() if body.rt_cd == "0" else Throttled(code=body.msg_cd)

    profile = Profile("benchmark", classify, secret_names=frozenset({"appkey", "appsecret", "CANO"}))
    async with HttpClient(HttpConfig(max_connections=tasks, max_connections_per_host=tasks)) as http:
        client = http.with_profile(profile)

        async def fetch():
            response = await client.get(url, params=PARAMS, headers=HEADERS)
            return response.status, response.content

        yield fetch


def client_of(name, url, tasks):
    if name == "aiohttp":
        return bare_aiohttp(url, tasks)
    return ours(url, tasks) if name == "aegis" else bare_httpx(url, tasks, name)


async def run_client(name, url, tasks):
    """A child: for every line on stdin do that many requests, and print what they cost."""
    logging.basicConfig(level=logging.INFO, stream=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: ASYNC230, SIM115 - once
    loop = asyncio.get_running_loop()
    async with client_of(name, url, tasks) as fetch:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            left = int(line)

            async def worker():
                nonlocal left
                while left > 0:
                    left -= 1
                    status, content = await fetch()
                    if status != 200 or content != BODY:
                        raise SystemExit(f"{name}: a wrong answer, status {status}")

            cpu, wall = time.process_time(), time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(tasks)))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            count = int(line)
            print(json.dumps({"cpu_us": cpu / count * 1e6, "per_s": count / wall}), flush=True)


# --- the server ---


class Fast(asyncio.Protocol):
    """Answers whatever ends in an empty line."""

    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
        b"Content-Length: %d\r\nServer: fast\r\n\r\n%b" % (len(BODY), BODY)
    )

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(self.answer * data.count(b"\r\n\r\n"))


async def run_fast(port):
    server = await asyncio.get_running_loop().create_server(Fast, "127.0.0.1", port)
    await server.serve_forever()


NGINX = """
daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 100000000; default_type "application/json; charset=utf-8";
  client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home}; uwsgi_temp_path {home};
  scgi_temp_path {home};
  server {{ listen 127.0.0.1:{port}; location / {{ root {home}; try_files /body =404; }} }}
}}
"""


@contextlib.contextmanager
def serving():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nginx = shutil.which("nginx")
    with tempfile.TemporaryDirectory() as home:
        if nginx:
            Path(home, "body").write_bytes(BODY)
            Path(home, "conf").write_text(NGINX.format(home=home, port=port))
            Path(home).chmod(0o755)
            command = [nginx, "-e", f"{home}/error.log", "-c", f"{home}/conf"]
        else:
            command = [sys.executable, "-m", "benchmarks.http_client", "--serve", str(port)]
        process = subprocess.Popen(command)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/uapi/price", "nginx" if nginx else "asyncio"
        finally:
            process.terminate()
            process.wait()


# --- the measurement ---


class Child:
    def __init__(self, name, url, tasks):
        plan = json.dumps([name, url, tasks])
        command = [sys.executable, "-m", "benchmarks.http_client", "--worker", plan]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, requests):
        self.process.stdin.write(f"{requests}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def measure(url, tasks, rounds, requests):
    children = [Child(name, url, tasks) for name in CLIENTS]
    for child in children:
        child.ask(max(tasks, requests // 4))  # warm: connections, caches
    results = {name: [] for name in CLIENTS}
    for number in range(rounds):
        turn = number % len(children)
        for child in children[turn:] + children[:turn]:
            results[child.name].append(child.ask(requests))
    for child in children:
        child.close()
    return [{"tasks": tasks, "client": name} | summary(name, results) for name in CLIENTS]


def summary(name, results):
    mine, floor, httpx2 = results[name], results["aiohttp"], results["httpx2"]
    cpu = [one["cpu_us"] for one in mine]
    return {
        "cpu_us": median(cpu, 2),
        "cpu_us_spread": spread(cpu, 1),
        "per_s": median([one["per_s"] for one in mine]),
        "cpu_over_aiohttp": ratio(cpu, [one["cpu_us"] for one in floor]),
        "cpu_under_httpx2": ratio([one["cpu_us"] for one in httpx2], cpu),
        "times_httpx2_per_s": ratio([one["per_s"] for one in mine], [one["per_s"] for one in httpx2]),
    }


def main():
    parser = options(__doc__, smoke="few requests, to see that it runs", rounds=9)
    parser.add_argument("--requests", type=int, default=2000, help="of one client in one round")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return asyncio.run(run_fast(args.serve))
    if args.worker:
        return asyncio.run(run_client(*args.worker))
    rounds, requests = (3, 100) if args.smoke else (args.rounds, args.requests)
    with serving() as (url, server):
        rows = [row for tasks in (1, 32) for row in measure(url, tasks, rounds, requests)]
    facts = {"server": server, "rounds": rounds, "requests": requests}
    show(report("GET with everything on", rows, ("aiohttp", "httpx2", "httpx"), **facts), as_json=args.json)
    return None


if __name__ == "__main__":
    main()
