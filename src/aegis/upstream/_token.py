"""
One access token of KIS for all processes: issued once, watched for, dropped only by comparison.

KIS issues one a minute and app key, tells its owner each time, and lets it die early at maintenance. So the token lies
in the shared cache under (environment, hashed app key); whoever needs one and finds none loads it for all; whoever is
told "too soon" watches the store, because a sibling's success is what it waits for; and whoever sees its token refused
removes that one only, never the newer one of a sibling. Rejected: a file per process (each issues its own), deleting
blindly (wipes the token that a sibling has just obtained, and locks everybody out for a minute).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from aegis.config import KisConfig
from aegis.errors import HttpError, MissingSettingError, RateLimitTimeoutError, RejectedError, TokenRefusedError
from aegis.http import HttpClient, Request, Response
from aegis.redis import Cache, RateLimit, RateLimiter
from aegis.upstream._shape import KST, expected_shape

#: A token is renewed this long before its end, so that none dies between our check and the server's.
_MARGIN_S = 60.0
_WATCH_EVERY_S = 0.5
#: Longest wait for the permit and the answer of one issue; a permit further away than this is watched for instead.
_ISSUE_TIMEOUT_S = 10.0
_TOO_SOON = "EGW00133"


class Token(msgspec.Struct, frozen=True):
    """An access token and its end. Its `repr` does not show it."""

    value: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at.isoformat()})"

    @property
    def left_s(self) -> float:
        """Seconds until its end."""
        return (self.expires_at - datetime.now(UTC)).total_seconds()


class _Issued(msgspec.Struct):
    access_token: str
    access_token_token_expired: str


def credentials(config: KisConfig) -> tuple[str, str]:
    """App key and app secret."""
    if config.app_key is None or config.app_secret is None:
        missing = "KIS_APP_KEY" if config.app_key is None else "KIS_APP_SECRET"
        raise MissingSettingError("KisClient", missing)
    return config.app_key.get_secret_value(), config.app_secret.get_secret_value()


class SharedToken:
    """The token of one app key, as this process knows it. `http` knows what KIS means, and has no limiter."""

    def __init__(
        self, http: HttpClient, limiter: RateLimiter, cache: Cache, config: KisConfig, limit: RateLimit
    ) -> None:
        self.app_key, self.app_secret = credentials(config)
        self._http = http.with_rate_limiter(limiter, limit, key=self.app_key).without_retry()
        self._url, self._cache = config.base_url, cache
        self._interval_s = max(rate.per for rate in limit.rates)
        hashed = hashlib.blake2b(self.app_key.encode(), digest_size=12).hexdigest()
        self._name = f"kis-token:{'paper' if config.is_virtual else 'real'}:{hashed}"
        self._known: Token | None = None

    async def current(self) -> str:
        """
        The token; issued if nobody has one.

        Raises:
            TokenRefusedError: KIS issued none, and, where that helps, an interval of waiting brought none either.
        """
        if self._known is None or self._known.left_s <= 0:
            self._known = await self._obtain()
        return self._known.value

    async def renew(self, request: Request, response: Response) -> Mapping[str, str]:
        """The token of `request` was refused: drop it, if it is still the one that all use, and get the next."""
        del response
        known = self._known
        if known is not None and request.headers.get("authorization") == f"Bearer {known.value}":
            self._known = None
            await self._cache.delete_if(self._name, known, Token)
        return {"authorization": f"Bearer {await self.current()}"}

    async def _obtain(self) -> Token:
        deadline = time.monotonic() + self._interval_s + _ISSUE_TIMEOUT_S
        while True:
            try:
                return await self._cache.get_or_set(
                    self._name, self._issue, Token, ttl=_life_s, error_ttl_s=_WATCH_EVERY_S
                )
            except (TokenRefusedError, RateLimitTimeoutError) as exc:
                wait_s = exc.retry_after if isinstance(exc, TokenRefusedError) else exc.retry_after_s
                if not wait_s or time.monotonic() + wait_s > deadline:
                    raise
            if (token := await self._watch(wait_s)) is not None:
                return token

    async def _watch(self, seconds: float) -> Token | None:
        """Somebody has been issued one less than an interval ago: if they share it with us, it appears here."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, _WATCH_EVERY_S))
            if (token := await self._cache.get(self._name, Token)) is not None:
                return token
        return None

    async def _issue(self) -> Token:
        """Ask KIS. Every failure becomes an error of plain words, so that all processes that wait understand it."""
        body = {"grant_type": "client_credentials", "appkey": self.app_key, "appsecret": self.app_secret}
        try:
            answer = await self._http.post_json(f"{self._url}/oauth2/tokenP", body, timeout=_ISSUE_TIMEOUT_S)
            with expected_shape(answer):
                return _token(answer.json(_Issued))
        except HttpError as exc:
            hopeless = isinstance(exc, RejectedError) and exc.code != _TOO_SOON
            raise TokenRefusedError(exc.code, exc.detail, None if hopeless else self._interval_s) from exc


def _life_s(token: Token) -> float:
    return max(1.0, token.left_s)


def _token(issued: _Issued) -> Token:
    """`expires_in` is known to be off by an hour, so the end is what the text says, which is Korean time."""
    end = datetime.strptime(issued.access_token_token_expired.strip(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=KST)
    return Token(issued.access_token, end.astimezone(UTC) - timedelta(seconds=_MARGIN_S))
