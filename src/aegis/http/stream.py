"""
A body that comes piece by piece, for answers that do not belong in memory.

Retries, permits and classification belong to the beginning: until the head and the first 64 KiB are there. A shorter
answer, or one with an error status, is read whole and means what it always means, so the error body of an upstream that
answers 200 to everything is not mistaken for the file. Later nothing can be repeated: what breaks is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic

from multidict import CIMultiDict

from aegis.errors import ClosedError, HttpError
from aegis.http._call import Call
from aegis.http._outcome import ending_of
from aegis.http._wire import Failure, next_chunk
from aegis.http.profile import Response


class StreamedResponse:
    """
    An answer whose body is read with `async for chunk in response`, once, as the server sends it.

    The time that the reader takes counts towards the call's total deadline. A body that stalls for longer than
    HTTP_ATTEMPT_TIMEOUT, breaks, or grows beyond `body_bytes_max` raises the error that the whole answer would have
    raised; the connection of a body that was not read to its end is closed.
    """

    def __init__(self, call: Call, head: Response, body_bytes_max: int | None) -> None:
        self._call, self._head, self._body_bytes_max = call, head, body_bytes_max
        self._whole = call.rest is None  #: the body is in the head
        self._taken = False  #: somebody reads it, has read it, or has left
        self.received_bytes = 0  #: given to the reader so far, decoded

    def __repr__(self) -> str:
        return f"StreamedResponse({self._head.status}, {self._head.url!r}, {self.received_bytes} bytes received)"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._head.status

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers of the answer."""
        return self._head.headers

    @property
    def url(self) -> str:
        """Where the answer comes from; redacted."""
        return self._head.url

    @property
    def attempts(self) -> int:
        """How many requests it took."""
        return self._head.attempts

    def raise_for_status(self) -> StreamedResponse:
        """Return the response, or raise `HttpStatusError` when its status is 400 or above."""
        self._head.raise_for_status()
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces of the body, decompressed."""
        if self._taken:
            raise ClosedError("StreamedResponse")
        self._taken = True
        piece = self._head.content
        while piece:
            self.received_bytes += len(piece)
            if self._body_bytes_max is not None and self.received_bytes > self._body_bytes_max:
                raise self._broken(
                    Failure("too_large", f"the body is larger than {self._body_bytes_max} bytes", self.status)
                )
            yield piece
            piece = b"" if self._whole else await self._next()
        self._end("ok")

    def close(self) -> None:
        """Give the connection back, or up where the body was not read to its end. Idempotent."""
        self._taken = True
        self._end("ok")

    async def _next(self) -> bytes:
        call = self._call
        if call.rest is None:
            raise ClosedError("StreamedResponse")
        left_s = call.deadline - monotonic()
        if left_s <= 0:
            raise self._broken(Failure("timeout", f"the body did not end within {call.timeout_s:.3f} s", self.status))
        try:
            piece = await next_chunk(call.rest, call.upstream.route, min(left_s, call.shared.config.attempt_timeout))
        except BaseException as exc:
            self._end(ending_of(exc), exc)
            raise
        if isinstance(piece, Failure):
            raise self._broken(piece)
        return piece

    def _broken(self, failure: Failure) -> HttpError:
        outcome, error = self._call.broken(failure)
        self._end(outcome, error)
        return error

    def _end(self, outcome: str, error: BaseException | None = None) -> None:
        if self._call.rest is not None:
            self._call.end_stream(outcome, error, self.received_bytes)
