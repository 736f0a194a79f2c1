"""The gateway: browsers get the newest values, slow ones hurt only themselves, nobody reads who may not."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import aiohttp
import aiohttp.web
import pytest

from aegis.gateway import Access, Gateway
from aegis.gateway.board import Board

TOKEN = "a-token-of-some-length"


async def next_event(stream: aiohttp.ClientWebSocketResponse) -> dict[str, object]:
    """The next event of a WebSocket."""
    return json.loads(await stream.receive_str(timeout=10))


async def next_sse(response: aiohttp.ClientResponse) -> dict[str, object]:
    """The next event of a stream of Server-Sent Events, with its `id` line checked."""
    event_id = ""
    async with asyncio.timeout(10):
        while True:
            line = (await response.content.readline()).decode().rstrip("\n")
            if line.startswith("id: "):
                event_id = line[4:]
            if line.startswith("data: "):
                event = json.loads(line[6:])
                assert event["id"] == event_id
                return event


def values(event: dict[str, object]) -> dict[str, object]:
    """Key to value."""
    return {update["key"]: update["value"] for update in event["updates"]}


async def test_websocket_starts_with_last_values_then_follows(bus, serve):
    """First everything, marked as a snapshot; then what changes, with its version and time."""
    await bus.publish("005930", {"price": 70_000})
    await bus.flush()
    async with serve() as (gateway, url), aiohttp.ClientSession() as session, session.ws_connect(url) as stream:
        first = await next_event(stream)
        assert (first["snapshot"], first["live"], values(first)) == (True, True, {"005930": {"price": 70_000}})
        await bus.publish("005930", {"price": 70_100}, urgent=True)
        then = await next_event(stream)
        assert (then["snapshot"], values(then)) == (False, {"005930": {"price": 70_100}})
        assert then["updates"][0]["version"] > first["updates"][0]["version"]
        assert gateway.stats().clients == 1


async def test_server_sent_events_and_resume_by_last_event_id(bus, serve):
    """After a break, a client that names its last event gets what has changed since, and nothing else."""
    await bus.publish("a", 1)
    await bus.publish("b", 1)
    await bus.flush()
    async with serve() as (_, url), aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert response.content_type == "text/event-stream"
            first = await next_sse(response)
            assert values(first) == {"a": 1, "b": 1}
        await bus.publish("b", 2)
        await bus.flush()
        for headers, params in (({"Last-Event-ID": first["id"]}, {}), ({}, {"last_event_id": first["id"]})):
            async with session.get(url, headers=headers, params=params) as response:
                again = await next_sse(response)
                assert (again["snapshot"], values(again)) == (False, {"b": 2})
        for foreign in ("someone:1", "nonsense", first["id"] + "0000", f"{first['id'].split(':')[0]}:²"):
            async with session.get(url, params={"last_event_id": foreign}) as response:
                whole = await next_sse(response)
                assert (whole["snapshot"], values(whole)) == (True, {"a": 1, "b": 2})


async def test_only_the_keys_asked_for(bus, serve):
    """A client of two keys gets these, and is not woken for others."""
    async with (
        serve() as (_, url),
        aiohttp.ClientSession() as session,
        session.ws_connect(url, params=[("key", "a"), ("key", "b")]) as stream,
    ):
        assert values(await next_event(stream)) == {}
        for number, key in enumerate(("c", "a", "c", "b")):
            await bus.publish(key, number)
        await bus.flush()
        seen: dict[str, object] = {}
        while seen != {"a": 1, "b": 3}:
            event = await next_event(stream)
            assert values(event).keys() <= {"a", "b"}
            assert values(event)
            seen |= values(event)


async def test_gap_reaches_the_browser(bus, serve):
    """What the broadcast reports as lost is told on."""
    async with serve() as (_, url), aiohttp.ClientSession() as session, session.ws_connect(url) as stream:
        await bus.publish("a", 1)
        await bus.flush()
        while not values(await next_event(stream)):
            pass
        receiver = bus._receiver
        real, receiver._on_frame = receiver._on_frame, lambda place, frame: None
        await bus.publish("a", 2)
        await bus.flush()
        async with asyncio.timeout(10):
            while bus.stats().gaps == 0:
                await asyncio.sleep(0.01)
        receiver._on_frame = real
        gaps, newest = [], None
        while not gaps or newest != 2:
            event = await next_event(stream)
            gaps += event["gaps"]
            newest = values(event).get("a", newest)
        assert gaps[0]["lost"] == 1


async def test_stale_values_are_marked(bus, serve):
    """Nothing is heard from the server any more: clients are told, though no value changes."""
    async with serve() as (_, url), aiohttp.ClientSession() as session, session.ws_connect(url) as stream:
        assert (await next_event(stream))["live"] is True
        bus._receiver._on_message = lambda channel, payload: None
        bus._receiver._feed._on_message = lambda channel, payload: None
        while (await next_event(stream))["live"]:
            pass


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"X-Forwarded-For": "203.0.113.5"}, 403),
    ],
)
async def test_without_settings_only_this_machine_reads(serve, headers, status):
    """A foreign page, a rebound name and a proxy are refused; a local page and a local program are served."""
    async with serve() as (_, url), aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.status == status
        websocket = {"Connection": "Upgrade", "Upgrade": "websocket"}
        websocket |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        async with session.get(url, headers=headers | websocket) as upgrade:
            assert upgrade.status == (101 if status == 200 else status)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong-token-of-length"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Cookie": f"aegis_token={TOKEN}"}, 200),
        ({"Sec-WebSocket-Protocol": f"aegis, bearer.{TOKEN}"}, 200),
        ({"Origin": "https://desk.example", "Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Origin": "https://other.example", "Authorization": f"Bearer {TOKEN}"}, 403),
    ],
)
async def test_token_and_origins(serve, headers, status):
    """With a token everybody must show it, in one of three places; named origins may read, and only they."""
    async with (
        serve(token=TOKEN, origins=["https://desk.example"]) as (gateway, url),
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers) as response,
    ):
        assert response.status == status
        assert gateway.stats().refused == (status != 200)
        assert TOKEN not in repr(gateway)


async def test_token_in_the_url_is_no_token(serve):
    """URLs land in logs."""
    async with (
        serve(token=TOKEN) as (_, url),
        aiohttp.ClientSession() as session,
        session.get(url, params={"token": TOKEN}) as response,
    ):
        assert response.status == 401


def test_bad_access_settings_are_refused():
    """A short token, a wildcard and a path are mistakes."""
    with pytest.raises(ValueError, match="at least 16 characters"):
        Access("short")
    for origin in ("*", "https://*.example", "desk.example", "https://desk.example/page"):
        with pytest.raises(ValueError, match="is not of the form"):
            Access(TOKEN, [origin])


async def test_more_clients_than_the_bound_are_told_to_come_back(serve):
    """503 with Retry-After."""
    async with (
        serve(clients_max=1) as (_, url),
        aiohttp.ClientSession() as session,
        session.ws_connect(url) as stream,
    ):
        await next_event(stream)
        async with session.get(url) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")


async def test_closing_says_try_again(bus, serve):
    """Leaving the gateway closes its clients with 1012, in bounded time."""
    async with Gateway(bus) as gateway:
        app = aiohttp.web.Application()
        app.router.add_get("/quotes", gateway.handle)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        session = aiohttp.ClientSession()
        stream = await session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/quotes")
        await next_event(stream)
        reading = asyncio.create_task(stream.receive())
    message = await asyncio.wait_for(reading, 10)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)
    await session.close()
    await runner.cleanup()


class Deaf:
    """A WebSocket client by hand that reads only when told."""

    def __init__(self, url: str) -> None:
        host, port = url.split("/")[2].split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.sendall(
            f"GET /quotes HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def read_all(self) -> bytes:
        """Everything until the end."""
        self.socket.settimeout(10)
        data = b""
        try:
            while chunk := self.socket.recv(65536):
                data += chunk
        except ConnectionResetError:
            pass
        self.socket.close()
        return data


async def test_client_that_never_reads_is_conflated_and_closed_with_1013(bus, serve):
    """It holds one event and a small buffer; its neighbour notices nothing; when it reads at last, it learns why."""
    async with (
        serve(stalled_max_s=0.5, flush_s=0.005) as (gateway, url),
        aiohttp.ClientSession() as session,
        session.ws_connect(url) as neighbour,
    ):
        deaf = await asyncio.to_thread(Deaf, url)
        large = "x" * 2000
        number = 0
        async with asyncio.timeout(20):
            while not gateway.stats().evicted:
                for key in range(50):
                    await bus.publish(f"k{key}", [number, large])
                await bus.flush()
                number += 1
                event = await next_event(neighbour)
                while values(event).get("k49", [-1])[0] != number - 1:
                    event = await next_event(neighbour)
                if len(gateway._clients) == 2:
                    buffered = max(stream.buffered for stream in gateway._clients.values())
                    assert buffered <= 2 * 50 * 2200
        data = await asyncio.to_thread(deaf.read_all)
    assert struct.pack("!BBH", 0x88, 2 + len(b"too slow; connect again"), 1013) + b"too slow; connect again" in data


async def test_client_that_reads_but_never_catches_up_is_closed(bus, serve, monkeypatch):
    """It takes a little now and then, so it does not stall; but what it gets is older every time."""
    monkeypatch.setattr("aegis.gateway.stream.SEND_BUFFER_BYTES", 8192)
    monkeypatch.setattr("aegis.gateway.stream._SAY_GOODBYE_S", 0.2)  # it will not read the code
    async with serve(stalled_max_s=30, behind_max_s=0.5, flush_s=0.005) as (gateway, url):
        slow = await asyncio.to_thread(Deaf, url)
        async with asyncio.timeout(20):
            while not gateway.stats().evicted:
                for key in range(10):
                    await bus.publish(f"k{key}", "x" * 10_000)
                await bus.flush()
                await asyncio.to_thread(slow.socket.recv, 16)
        slow.socket.close()


def test_board_says_what_changed_since():
    """Pure: order of change, only the newest of each key, the same bytes for all at one place."""
    board = Board()
    board.put("a", b'{"n":1}')
    board.put("b", b'{"n":2}')
    place = board.seq
    board.put("a", b'{"n":3}')
    board.put_gap(b'{"lost":1}')
    event = json.loads(board.event_after(place))
    assert (event["updates"], event["gaps"], event["snapshot"]) == ([{"n": 3}], [{"lost": 1}], False)
    assert board.event_after(place) is board.event_after(place)
    whole = json.loads(board.event_after(0))
    assert (whole["updates"], whole["gaps"], whole["snapshot"]) == ([{"n": 2}, {"n": 3}], [], True)
    assert board.event_after(board.seq) is None
    before = board.seq
    board.set_live(False)
    assert json.loads(board.event_after(before))["live"] is False
    assert json.loads(board.event_after(before, ["b"]))["updates"] == []
    assert board.event_after(board.seq, ["b"]) is None
