"""
Record what an upstream answered, and play it back: tests that need no network, no key and no quota.

A cassette stands where the wire is, so everything above it (retries, permits, breaker, classification) works as in
production, and a recorded failure is played back as a failure. Secrets are masked before anything is kept: headers of
requests are not kept at all, values of secret names become `***`, and a file in which a secret still shows, or what
looks like one and was never declared, is not written. Rejected: masking by configured filters alone (as vcrpy does),
where what was forgotten is committed.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from multidict import CIMultiDict

from aegis.errors import CassetteError, SecretInCassetteError
from aegis.http._wire import Answer, Failure
from aegis.http.profile import Request
from aegis.http.redact import MASK, Redactor, forms_of

#: Headers of an answer that describe its way here, which is not recorded.
_OF_THE_WAY = frozenset({"content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive"})
_SHOWN_MAX = 5
#: A field whose name says secret and whose value is long enough for one.
_SUSPECT = re.compile(
    r"""([\w.-]*(?:secret|token|passw|pwd|api_?key|app_?key|auth_?key|service_?key|credential|signature)[\w.-]*)"""
    r"""(?:\\*["'])?\s*[=:]\s*(?:\\*["'])?([^\s"'&,;<>{}\\]{8,})""",
    re.IGNORECASE,
)


class _Body(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Bytes as a reader would like to see them."""

    text: str = ""
    charset: str = "utf-8"
    base64: str = ""  #: instead of `text`, where it is none

    @classmethod
    def of(cls, content: bytes) -> Self:
        for charset in ("utf-8", "cp949"):
            try:
                text = content.decode(charset)
            except UnicodeDecodeError:
                continue
            if text.encode(charset) == content:
                return cls(text, charset)
        return cls(base64=base64.b64encode(content).decode())

    def content(self) -> bytes:
        return base64.b64decode(self.base64) if self.base64 else self.text.encode(self.charset)

    def masked(self, mask: Callable[[str], str]) -> _Body:
        return self if self.base64 else _Body(mask(self.text), self.charset)


class _Exchange(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One request and what came back: an answer (`status`, `headers`, `body`) or a `failure`."""

    method: str
    url: str
    sent: _Body
    status: int | None = None
    headers: list[tuple[str, str]] = []
    body: _Body = msgspec.field(default_factory=_Body)
    failure: Failure | None = None

    def result(self) -> Answer | Failure:
        if self.failure is not None:
            return self.failure
        return Answer(self.status or 0, CIMultiDict(self.headers), self.body.content())


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    exchanges: list[_Exchange]


class Cassette:
    """
    A file of recorded exchanges, for `http.with_cassette(cassette)`.

    `with Cassette(path, record=True) as cassette:` asks the upstream and writes the file when the block ends well.
    `Cassette(path)` plays it back: each exchange once, in order, for the same method, URL and body, whatever the
    secrets in them; nothing is sent. `harmless` names fields that look like secrets and are none.

    Raises:
        CassetteError: the file cannot be read, or holds no (further) answer to a request.
        SecretInCassetteError: a secret would have been written; nothing was.
    """

    def __init__(self, path: str | Path, *, record: bool = False, harmless: Iterable[str] = ()) -> None:
        self.path, self.recording = Path(path), record
        self._harmless = frozenset(name.lower() for name in harmless)
        self._secrets: set[str] = set()
        self._exchanges: list[_Exchange] = [] if record else self._load()
        self._played: set[int] = set()

    def __repr__(self) -> str:
        doing = "recording" if self.recording else f"{self.unplayed} to play"
        return f"Cassette({str(self.path)!r}, {len(self._exchanges)} exchanges, {doing})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None and self.recording:
            self.save()

    @property
    def unplayed(self) -> int:
        """How many recorded exchanges nobody has asked for yet."""
        return 0 if self.recording else len(self._exchanges) - len(self._played)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        for number, exchange in enumerate(self._exchanges, 1):
            for place, text in _places(exchange):
                self._refuse_secrets(f"{place} of exchange {number}", text)
        content = msgspec.json.format(msgspec.json.encode(_File(1, self._exchanges)), indent=2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            unfinished.write_bytes(content + b"\n")
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    async def exchange(
        self, request: Request, redactor: Redactor, send: Callable[[], Awaitable[Answer | Failure]]
    ) -> Answer | Failure:
        """What comes back for `request`: from the file, or from the upstream through `send`."""
        values = redactor.values(request.url, request.headers, request.content)

        def mask(text: str) -> str:
            return redactor.text(text, values)

        url = mask(redactor.url(request.url))
        sent = _Body.of(request.content).masked(mask) if isinstance(request.content, bytes) else _Body()
        if not self.recording:
            return self._play(request.method, url, sent)
        result = await send()
        made = _Exchange(request.method, url, sent)
        if isinstance(result, Failure):
            made.failure = result
        else:
            values |= redactor.values("", result.headers, result.content)
            kept = [(str(name), value) for name, value in result.headers.items() if name.lower() not in _OF_THE_WAY]
            made.status = result.status
            made.headers = [(name, MASK if redactor.secret(name) else mask(value)) for name, value in kept]
            made.body = _Body.of(result.content).masked(mask)
        self._secrets |= values
        self._exchanges.append(made)
        return result

    def _play(self, method: str, url: str, sent: _Body) -> Answer | Failure:
        wanted, same = (method, _sorted_query(url), sent), 0
        for number, exchange in enumerate(self._exchanges):
            if (exchange.method, _sorted_query(exchange.url), exchange.sent) == wanted:
                if number not in self._played:
                    self._played.add(number)
                    return exchange.result()
                same += 1
        if same:
            raise CassetteError(str(self.path), f"the {same} answers to {method} {url} have been played already")
        held = ", ".join(f"{one.method} {one.url}" for one in self._exchanges[:_SHOWN_MAX]) or "nothing"
        raise CassetteError(str(self.path), f"no answer to {method} {url} with this body; it holds {held}")

    def _load(self) -> list[_Exchange]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_File).exchanges
        except (OSError, msgspec.DecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else f"not a cassette: {exc}"
            raise CassetteError(str(self.path), f"{reason}; record it with Cassette(path, record=True)") from None

    def _refuse_secrets(self, place: str, text: str) -> None:
        for value in self._secrets:
            if any(form in text for form in (*forms_of(value), base64.b64encode(value.encode()).decode())):
                raise SecretInCassetteError(str(self.path), f"the {place} shows a secret of a request")
        for match in _SUSPECT.finditer(text):
            if match[1].lower() not in self._harmless:
                why = f"{match[1]!r} in the {place} looks like a secret; declare it with with_secrets, or as harmless"
                raise SecretInCassetteError(str(self.path), why)


def _places(exchange: _Exchange) -> Iterator[tuple[str, str]]:
    yield "URL", exchange.url
    yield "sent body", exchange.sent.content().decode("latin-1") if exchange.sent.base64 else exchange.sent.text
    yield "headers", "\n".join(f"{name}: {value}" for name, value in exchange.headers)
    yield "body", exchange.body.content().decode("latin-1") if exchange.body.base64 else exchange.body.text
    yield "failure", exchange.failure.reason if exchange.failure is not None else ""


def _sorted_query(url: str) -> str:
    address, question, query = url.partition("?")
    return f"{address}{question}{'&'.join(sorted(query.split('&')))}"
