"""What the three services share: the rules in force, the clock, the market, the faults, and the counts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from aegis.upstream.simulator.faults import Faults
from aegis.upstream.simulator.market import Look, Market
from aegis.upstream.simulator.quota import Quotas

_VIOLATIONS_MAX = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers that the simulator enforces. Defaults are the presets'; sources stand there."""

    kis_per_second: int = 5
    kis_paper: bool = False  #: a paper account: trading transactions begin with V
    dart_per_minute: int = 100
    dart_per_day: int = 20_000
    dart_block_per_minute: int = 1000  #: requests of one address, above which it is blocked
    dart_block_s: float = 86_400.0  #: how long: every connection is reset
    naver_per_second: int = 10
    naver_polling_s: float = 7.0  #: the interval that it publishes
    token_interval_s: float = 60.0  #: one token per app key and minute (EGW00133)
    token_life_s: float = 86_400.0
    token_same_s: float = 6 * 3600.0  #: a new issue within six hours returns the same token

    def __post_init__(self) -> None:
        for name in ("kis_per_second", "dart_per_minute", "dart_per_day", "dart_block_per_minute", "naver_per_second"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def changed(self, changes: Mapping[str, Any], *, strict: bool = True) -> Rules:
        """
        The same with other numbers; not `strict`, they may be written as text.

        Raises:
            ValueError: says which one is wrong, and what there is.
        """
        if unknown := changes.keys() - asdict(self).keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: none of the rules {', '.join(asdict(self))}")
        return msgspec.convert({**asdict(self), **changes}, Rules, strict=strict)

    def with_text(self, text: str) -> Rules:
        """The same with one number changed, as on a command line: `dart_per_day=100`. Raises as `changed`."""
        name, _, value = text.partition("=")
        try:
            return self.changed({name: value}, strict=False)
        except ValueError as exc:
            raise ValueError(f"rule {text!r}: {exc}") from None


class State:
    """The simulator's memory. One event loop owns it."""

    def __init__(self, market: Market, rules: Rules) -> None:
        self.market, self.rules, self.faults = market, rules, Faults()
        self.started_ns = self.measured_from_ns = time.monotonic_ns()
        self.kis = Quotas(rules.kis_per_second, 1.0)
        self.dart = Quotas(rules.dart_per_minute, 60.0)
        self.dart_daily = Quotas(rules.dart_per_day, 86_400.0)
        self.dart_address = Quotas(rules.dart_block_per_minute, 60.0)
        self.naver = Quotas(rules.naver_per_second, 1.0)
        self.tokens = TokenBook(rules)
        self.violations: list[str] = []
        self.orders: list[dict[str, str]] = []  #: executed ones, as they came

    def look(self, code: str) -> Look | None:
        """One stock now."""
        return self.market.look(code, (time.monotonic_ns() - self.started_ns) / 1e9)

    def change(self, rules: Rules) -> None:
        """Other rules from now on; what is in a window stays in it."""
        self.rules = self.tokens.rules = rules
        self.kis.change(rules.kis_per_second)
        self.dart.change(rules.dart_per_minute)
        self.dart_daily.change(rules.dart_per_day)
        self.dart_address.change(rules.dart_block_per_minute)
        self.naver.change(rules.naver_per_second)

    def violation(self, what: str) -> None:
        """Note something that no well-behaved client does; the first hundred are kept."""
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(what)

    def forget(self) -> None:
        """Statistics anew. Tokens, windows, rules and faults stay."""
        self.measured_from_ns = time.monotonic_ns()
        for quotas in (self.kis, self.dart, self.dart_daily, self.dart_address, self.naver):
            quotas.forget()
        self.tokens.issued = self.tokens.refused = 0
        self.violations.clear()
        self.orders.clear()
        self.faults.happened.clear()

    def report(self, since_s: float | None = None) -> dict[str, Any]:
        """Everything that was seen, as plain data. `quota_used` is over the time since `since_s`, on the clock `at`."""
        now_ns = time.monotonic_ns()
        since_ns = self.measured_from_ns if since_s is None else round(since_s * 1e9)
        return {
            "at": now_ns / 1e9,
            "kis": self.kis.report(since_ns, now_ns),
            "dart": self.dart.report(since_ns, now_ns),
            "dart_daily": self.dart_daily.report(since_ns, now_ns),
            "dart_address": self.dart_address.report(since_ns, now_ns),
            "naver": self.naver.report(since_ns, now_ns),
            "tokens_issued": self.tokens.issued,
            "tokens_refused": self.tokens.refused,
            "orders": len(self.orders),
            "faults": dict(self.faults.happened),
            "violations": list(self.violations),
        }


@dataclass(slots=True)
class TokenBook:
    """The tokens of KIS: who may ask when, and which are valid."""

    rules: Rules
    issued: int = 0
    refused: int = 0
    _asked_at: dict[str, float] = field(default_factory=dict)
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict)  # app key -> token, issued at
    _secrets: dict[str, str] = field(default_factory=dict)  # app key -> its secret, as first seen

    def knows(self, app_key: str, app_secret: str) -> bool:
        """Whether the secret is that of the app key; the first one that comes with a key is taken for it."""
        return self._secrets.setdefault(app_key, app_secret) == app_secret

    def issue(self, app_key: str) -> tuple[str, float] | None:
        """A token and the seconds it is valid; None when the app key was issued one less than an interval ago."""
        now = time.monotonic()
        asked_at = self._asked_at.get(app_key)
        if asked_at is not None and now - asked_at < self.rules.token_interval_s:
            self.refused += 1
            return None
        self._asked_at[app_key] = now
        self.issued += 1
        token, issued_at = self._tokens.get(app_key, ("", float("-inf")))
        if now - issued_at >= min(self.rules.token_same_s, self.rules.token_life_s):
            # Shaped like a token, unlike any real one: real ones are signed, this one only has to be unguessable.
            token, issued_at = f"eyJ-simulated-{now:.6f}-{self.issued}", now
            self._tokens[app_key] = (token, issued_at)
        return token, issued_at + self.rules.token_life_s - now

    def verdict(self, app_key: str, token: str) -> str:
        """`valid`, `expired` or `invalid`."""
        known, issued_at = self._tokens.get(app_key, ("", 0.0))
        if not known or token != known:
            return "invalid"
        return "valid" if time.monotonic() - issued_at < self.rules.token_life_s else "expired"

    def void(self) -> None:
        """Maintenance: every token dies."""
        self._tokens.clear()
