"""
Every way in which the three have been seen to fail, switched on by name.

A fault belongs to a service and a part of a path, happens `times` times (or until it is switched off) to every
`every`-th request that the quota let through, and before it or after it the request is executed or not: for an order,
that is the difference between money and no money.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import msgspec
from aiohttp import web

Kind = Literal[
    "reset", "hang", "cut", "drip", "slow", "blank-500", "html", "wrong-charset", "code", "maintenance"
]  # fmt: skip
Service = Literal["kis", "dart", "naver"]
_DRIP_S = 0.05
_POLL_S = 0.02
_PAGE = (
    "<html><head><title>안내</title></head><body>서비스 제공이 불가능합니다. 잠시 후 다시 이용해 주세요.</body></html>"
)
_LINGER_ZERO = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One fault. `seconds` is the delay of `slow`, and the pause between bytes of `drip`."""

    kind: Kind
    service: Service | None = None  #: None: any
    path: str = ""  #: part of the path, "" for any
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None  #: None: until it is switched off
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    code: str = ""  #: the upstream's own, for `code`
    executed: bool = False  #: whether the request has its effect nevertheless
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    seen: int = 0
    happened: int = 0

    @staticmethod
    def kinds() -> tuple[str, ...]:
        """What can go wrong."""
        return get_args(Kind)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """
        From a command line: `reset,service=kis,path=order,times=2,executed=true`.

        Raises:
            ValueError: says what is wrong with which part.
        """
        kind, *pairs = text.split(",")
        fields: dict[str, Any] = {"kind": kind}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or name in {"kind", "seen", "happened"} or name not in cls.__struct_fields__:
                raise ValueError(
                    f"fault {text!r}: {pair!r} is none of service= path= times= every= code= seconds= executed="
                )
            fields[name] = value == "true" if name == "executed" else value
        try:
            return msgspec.convert(fields, cls, strict=False)
        except msgspec.ValidationError as exc:
            raise ValueError(f"fault {text!r}: {exc}; kinds are {', '.join(cls.kinds())}") from None

    def takes(self, service: str, path: str) -> bool:
        """Whether this request is the fault's; counts it."""
        if self.service not in {None, service} or self.path not in path:
            return False
        if self.times is not None and self.happened >= self.times:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.happened += 1
        return True


class Faults:
    """Those that are switched on. The first that takes a request has it."""

    def __init__(self) -> None:
        self._active: list[Fault] = []
        self.happened: dict[str, int] = {}

    def add(self, fault: Fault) -> None:
        """Switch one on."""
        self._active.append(fault)

    def clear(self) -> None:
        """Switch all off."""
        self._active.clear()

    def take(self, service: str, path: str) -> Fault | None:
        """The fault that this request meets, if any."""
        for fault in self._active:
            if fault.takes(service, path):
                name = f"{service}:{fault.kind}"
                self.happened[name] = self.happened.get(name, 0) + 1
                return fault
        return None


async def happen(
    fault: Fault, request: web.Request, execute: Callable[[], web.Response], refuse: Callable[[str], web.Response]
) -> web.StreamResponse:
    """Let it happen to this request. `refuse` makes the service's own answer for a code, blank for ""."""
    if fault.kind in {"cut", "drip", "slow", "wrong-charset"}:
        return await _spoiled(fault, request, execute())
    if fault.executed:
        execute()
    if fault.kind == "reset":
        return reset(request)
    if fault.kind == "hang":
        return await _silence(request)
    if fault.kind == "html":
        return web.Response(text=_PAGE, content_type="text/html", charset="utf-8")
    return refuse(fault.code if fault.kind == "code" else "" if fault.kind == "blank-500" else "maintenance")


def reset(request: web.Request) -> web.Response:
    """Drop the connection so that the client reads `Connection reset by peer`."""
    transport = request.transport
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        transport.abort()
    return web.Response(status=500)  # nobody reads it


async def _silence(request: web.Request) -> web.Response:
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - no event says it
        await asyncio.sleep(_POLL_S)
    return web.Response(status=500)


async def _spoiled(fault: Fault, request: web.Request, answer: web.Response) -> web.StreamResponse:
    body = answer.body
    assert isinstance(body, bytes)
    if fault.kind == "slow":
        await asyncio.sleep(fault.seconds)
        return answer
    if fault.kind == "wrong-charset":
        answer.body = body.decode(answer.charset or "utf-8").encode("cp949", "replace")
        answer.headers["Content-Type"] = f"{answer.content_type}; charset=utf-8"
        return answer
    stream = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
    stream.content_length = len(body)
    await stream.prepare(request)
    if fault.kind == "cut":
        await stream.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        return stream
    with contextlib.suppress(ConnectionError):  # few clients stay to the end
        for at in range(len(body)):
            await stream.write(body[at : at + 1])
            await asyncio.sleep(fault.seconds or _DRIP_S)
    return stream
