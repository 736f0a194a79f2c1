"""
One renewal of credentials for all calls that need it.

Calls that were refused while a renewal runs wait for it; an answer to a request that left before the last renewal ended
says nothing about the new credentials, so it takes those. The renewal is a task of its own: the call that began it may
be cancelled or run out of time without spoiling the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic

from aegis.http.profile import Request, Response
from aegis.http.records import Renew


class Renewal:
    """Single flight around the caller's `Renew`. One per `with_reauth`, shared by the clients derived from it."""

    __slots__ = ("_ended_at", "_flight", "_flights", "_headers", "_renew")

    def __init__(self, renew: Renew, flights: set[asyncio.Task[Mapping[str, str]]]) -> None:
        self._renew, self._flights = renew, flights
        self._flight: asyncio.Task[Mapping[str, str]] | None = None
        self._headers: Mapping[str, str] = {}
        self._ended_at = float("-inf")

    async def headers(self, request: Request, response: Response, sent_at: float) -> Mapping[str, str]:
        """The headers to replace in `request`, which left at `sent_at` and was refused."""
        if sent_at < self._ended_at:
            return self._headers
        if self._flight is None:
            self._flight = asyncio.create_task(self._fly(request, response), name="http renewal")
            self._flights.add(self._flight)
            self._flight.add_done_callback(self._landed)
        return await asyncio.shield(self._flight)

    async def _fly(self, request: Request, response: Response) -> Mapping[str, str]:
        headers = await self._renew(request, response)
        if not isinstance(headers, Mapping):
            raise TypeError(f"what with_reauth() was given must return headers, not {type(headers).__name__}")
        self._headers = headers
        self._ended_at = monotonic()
        return self._headers

    def _landed(self, flight: asyncio.Task[Mapping[str, str]]) -> None:
        self._flights.discard(flight)
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # retrieved, even where every caller has left
