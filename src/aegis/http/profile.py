"""
What an upstream means: one frozen record and one function per upstream. This is the seam that profiles are built on.

`classify(request, response)` runs after the body of *every* attempt was read, the last one included, and says what the
answer means; the client draws the consequence. Status lists were rejected: KIS says "too fast" with 500, DART with 200.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, overload

import msgspec
from multidict import CIMultiDict

from aegis.errors import BodyDecodeError, HttpStatusError
from aegis.http.breaker import BreakerPolicy
from aegis.http.charset import decode

T = TypeVar("T")

#: A body that can be sent again: bytes, or a function that gives its pieces from the beginning each time.
Content: TypeAlias = bytes | Callable[[], Iterable[bytes] | AsyncIterable[bytes]]


class Request(msgspec.Struct, frozen=True):
    """One request as it goes out. Its `repr` shows neither headers nor body nor URL."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: Content | None = None
    idempotent: bool = True

    def __repr__(self) -> str:
        return f"Request({self.method}, idempotent={self.idempotent})"


class Response(msgspec.Struct, frozen=True):
    """One complete answer. `attempts` requests were made for it; `elapsed_s` is the whole call, waits included."""

    status: int
    headers: CIMultiDict[str]
    content: bytes
    method: str = "GET"
    url: str = ""  #: redacted
    attempts: int = 1
    elapsed_s: float = 0.0
    retry_after: float | None = None  #: seconds, where the upstream named any
    charset: str | None = None  #: what the profile assumes when the server says nothing
    stopped_by: str = ""  #: what kept a further attempt from being made: circuit, limiter, deadline or budget

    def __repr__(self) -> str:
        size = len(self.content)
        return f"Response({self.status}, {self.method} {self.url!r}, {size} bytes, attempts={self.attempts})"

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    def text(self, encoding: str | None = None) -> str:
        """
        The body as text, by `encoding` or by the rule of `aegis.http.charset`.

        Raises:
            BodyDecodeError: the bytes are not of that charset; nothing is replaced.
        """
        try:
            if encoding is not None:
                return self.content.decode(encoding)
            return decode(self.content, self.headers.get("content-type", ""), self.charset)
        except (UnicodeError, LookupError) as exc:
            reason = f"body of {len(self.content)} bytes cannot be decoded: {type(exc).__name__}"
            raise BodyDecodeError(reason, self.method, self.url, self.attempts, self) from None

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:  # noqa: A002 - the contract's name
        """
        The body decoded as JSON into `type`; unknown fields are ignored.

        Raises:
            BodyDecodeError: not JSON, or not of that shape; the message names the path, never the content.
        """
        try:
            try:
                return msgspec.json.decode(self.content, type=type)
            except UnicodeDecodeError:
                return msgspec.json.decode(self.text(), type=type)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                return msgspec.json.decode(self.text(), type=type)
        except msgspec.DecodeError as exc:
            raise BodyDecodeError(f"not the expected JSON: {exc}", self.method, self.url, self.attempts, self) from None

    def raise_for_status(self) -> Response:
        """Return the response, or raise `HttpStatusError` when its status is 400 or above."""
        if self.status >= 400:
            detail = f"status {self.status}"
            raise HttpStatusError(detail, self.method, self.url, self.attempts, self, retry_after=self.retry_after)
        return self


@dataclass(frozen=True, slots=True)
class Ok:
    """The request was executed and the answer is the answer."""


@dataclass(frozen=True, slots=True)
class Empty:
    """Executed; there is nothing to report (DART 013). Returned like `Ok`; a cooperating client gives an empty list."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """Too fast. `after_s`: when to come back, if known. A POST is repeated too, unless `executed`."""

    after_s: float | None = None
    executed: bool = False
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Transient:
    """A failure that passes. Retried only where the request is idempotent, or `executed=False` is certain."""

    code: str = ""
    message: str = ""
    executed: bool | None = None  #: False: the upstream certainly did nothing


@dataclass(frozen=True, slots=True)
class Reauth:
    """The credentials are stale. Renewed at most once per call, then repeated with a new permit."""

    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Understood and refused; `RejectedError`."""

    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The upstream itself does not know whether it was executed (KIS EGW00301). Idempotent requests are repeated."""

    code: str = ""
    message: str = ""


Verdict: TypeAlias = Ok | Empty | Throttled | Transient | Reauth | Rejected | Ambiguous
Classify: TypeAlias = Callable[[Request, Response], Verdict]


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything the client must know about one upstream."""

    name: str
    classify: Classify
    secret_names: frozenset[str] = frozenset()
    default_headers: Mapping[str, str] = field(default_factory=dict)
    charset: str | None = None
    tls: Literal["modern", "legacy_rsa"] = "modern"
    breaker: BreakerPolicy | None = None  #: what fits this upstream; `with_breaker` overrules it
