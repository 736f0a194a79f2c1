"""
The prices behind the simulator: daily bars, replayed as a walk through open, low, high and close of each day.

A halted day (volume 0; its open, high and low are 0 in the data) stays at its close.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TextIO

from aegis.errors import ReplayError

#: Columns that a replay file must have; more are fine.
COLUMNS = ("date", "code", "name", "open", "high", "low", "close", "volume", "amount")
_POINTS_PER_DAY = 4
_SEED = 20260102
_WALK_DAYS = 60
_WALK_END = date(2026, 2, 20)
#: Codes and names on the KRX; the prices of the walk start near what they cost in early 2026.
_LISTED = (
    ("005930", "삼성전자", 128000), ("000660", "SK하이닉스", 680000), ("373220", "LG에너지솔루션", 370000),
    ("207940", "삼성바이오로직스", 1690000), ("005380", "현대차", 300000), ("000270", "기아", 121000),
    ("068270", "셀트리온", 181000), ("105560", "KB금융", 125000), ("055550", "신한지주", 77000),
    ("035420", "NAVER", 243000), ("012330", "현대모비스", 372000), ("028260", "삼성물산", 240000),
    ("005490", "POSCO홀딩스", 305000), ("006400", "삼성SDI", 270000), ("051910", "LG화학", 333000),
    ("035720", "카카오", 60000), ("086790", "하나금융지주", 94000), ("138040", "메리츠금융지주", 112000),
    ("032830", "삼성생명", 158000), ("259960", "크래프톤", 246000), ("015760", "한국전력", 47000),
    ("033780", "KT&G", 143000), ("012450", "한화에어로스페이스", 941000), ("329180", "HD현대중공업", 509000),
    ("009540", "HD한국조선해양", 407000), ("096770", "SK이노베이션", 101000), ("034730", "SK", 258000),
    ("003670", "포스코퓨처엠", 185000), ("066570", "LG전자", 92000), ("003550", "LG", 81000),
    ("017670", "SK텔레콤", 53000), ("030200", "KT", 52000), ("316140", "우리금융지주", 28000),
    ("018260", "삼성에스디에스", 172000), ("011200", "HMM", 20000), ("010130", "고려아연", 1320000),
    ("034020", "두산에너빌리티", 76000), ("352820", "하이브", 331000), ("009150", "삼성전기", 255000),
    ("010950", "S-Oil", 83000), ("247540", "에코프로비엠", 147000), ("086520", "에코프로", 91000),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """One day of one stock, in won and shares."""

    day: date
    open: int
    high: int
    low: int
    close: int
    volume: int
    amount: int

    @property
    def halted(self) -> bool:
        """Nothing was traded."""
        return self.volume == 0

    @property
    def points(self) -> tuple[int, int, int, int]:
        """The walk through the day."""
        return (self.close,) * 4 if self.halted else (self.open, self.low, self.high, self.close)


@dataclass(frozen=True, slots=True)
class Look:
    """One stock at one moment of the walk."""

    code: str
    name: str
    price: int
    base: int  #: the close of the day before
    volume: int  #: so far today
    bar: Bar


class Market:
    """Bars by code, and a clock that walks through them: four points a day, `point_s` seconds each, for ever."""

    def __init__(self, names: Mapping[str, str], bars: Mapping[str, tuple[Bar, ...]], point_s: float = 0.25) -> None:
        self.names, self.bars, self.point_s = names, bars, point_s

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code, in the order of the file."""
        return tuple(self.bars)

    @property
    def last_day(self) -> date:
        """The newest day that any stock has."""
        return max(bars[-1].day for bars in self.bars.values())

    def look(self, code: str, elapsed_s: float) -> Look | None:
        """The stock after `elapsed_s` seconds of walking; None for a code that is not listed."""
        bars = self.bars.get(code)
        if bars is None:
            return None
        day, point = divmod(int(elapsed_s / self.point_s), _POINTS_PER_DAY)
        index = day % len(bars)
        bar = bars[index]
        base = bars[index - 1].close if index else bar.open or bar.close
        volume = bar.volume * (point + 1) // _POINTS_PER_DAY
        return Look(code, self.names[code], bar.points[point], base, volume, bar)

    @classmethod
    def generated(cls) -> Market:
        """A seeded walk: the same prices on every run."""
        chance = random.Random(_SEED)
        days = [_WALK_END - timedelta(days=back) for back in range(_WALK_DAYS, -1, -1)]
        trading = [day for day in days if day.weekday() < 5]  # Monday to Friday
        bars = {code: tuple(_walk(chance, start, trading)) for code, _, start in _LISTED}
        return cls({code: name for code, name, _ in _LISTED}, bars)

    @classmethod
    def replayed(cls, path: Path) -> Market:
        """
        The bars of a CSV file, plain or gzip.

        Raises:
            ReplayError: names the file, the line and what was expected.
        """
        names: dict[str, str] = {}
        bars: dict[str, list[Bar]] = {}
        try:
            with _opened(path) as file:
                for code, name, bar in _rows(path, file):
                    names.setdefault(code, name)
                    bars.setdefault(code, []).append(bar)
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as exc:
            raise ReplayError(str(path), 0, f"a readable CSV file in UTF-8, plain or gzip ({exc})") from exc
        if not bars:
            raise ReplayError(str(path), 1, "at least one row below the header")
        return cls(names, {code: tuple(sorted(rows, key=lambda bar: bar.day)) for code, rows in bars.items()})


def check_replay(path: Path) -> None:
    """
    Read the file once, so that a mistake in it is known before anything is started.

    Raises:
        ReplayError: see `Market.replayed`.
    """
    Market.replayed(path)


def _walk(chance: random.Random, start: int, days: Iterable[date]) -> Iterator[Bar]:
    close = start
    for day in days:
        opened = max(1, round(close * (1 + chance.gauss(0, 0.005))))
        close = max(1, round(opened * (1 + chance.gauss(0, 0.02))))
        high = round(max(opened, close) * (1 + abs(chance.gauss(0, 0.005))))
        low = max(1, round(min(opened, close) * (1 - abs(chance.gauss(0, 0.005)))))
        volume = chance.randint(50_000, 20_000_000)
        yield Bar(day, opened, high, low, close, volume, volume * (high + low) // 2)


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, file: TextIO) -> Iterator[tuple[str, str, Bar]]:
    reader = csv.DictReader(file)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ReplayError(
            str(path), 1, f"a header with the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}"
        )
    for row in reader:
        try:
            day = date.fromisoformat(row["date"])
        except (TypeError, ValueError):
            raise ReplayError(str(path), reader.line_num, f"a date like 2026-01-02, got {row['date']!r}") from None
        if not row["code"]:
            raise ReplayError(str(path), reader.line_num, "a stock code")
        numbers = {column: _number(path, reader.line_num, column, row[column]) for column in COLUMNS[3:]}
        yield row["code"], row["name"] or row["code"], Bar(day, **numbers)


def _number(path: Path, line: int, column: str, text: str | None) -> int:
    if text is None or not text.isdigit():
        raise ReplayError(str(path), line, f"a whole number in column {column}, got {text!r}")
    return int(text)
