"""
KIS, DART and Naver: what they allow, what their answers mean, small clients, and a strict simulator of all three.

A new upstream is one file of data (its preset and profile) and one function (its classifier).
"""

from aegis.upstream._shape import DailyBar
from aegis.upstream._token import Token
from aegis.upstream.dart import DART_PROFILE, Company, CorpCode, DartClient, Disclosure
from aegis.upstream.kis import KIS_PROFILE, KisClient, StockPrice
from aegis.upstream.naver import NAVER_PROFILE, NaverClient, NaverQuote
from aegis.upstream.presets import (
    DART_DAILY_RATE_LIMIT,
    DART_RATE_LIMIT,
    KIS_LEDGER_RATE_LIMIT,
    KIS_NEW_CUSTOMER_RATE_LIMIT,
    KIS_PAPER_RATE_LIMIT,
    KIS_RATE_LIMIT,
    KIS_TOKEN_RATE_LIMIT,
    NAVER_RATE_LIMIT,
)

__all__ = [
    "DART_DAILY_RATE_LIMIT",
    "DART_PROFILE",
    "DART_RATE_LIMIT",
    "KIS_LEDGER_RATE_LIMIT",
    "KIS_NEW_CUSTOMER_RATE_LIMIT",
    "KIS_PAPER_RATE_LIMIT",
    "KIS_PROFILE",
    "KIS_RATE_LIMIT",
    "KIS_TOKEN_RATE_LIMIT",
    "NAVER_PROFILE",
    "NAVER_RATE_LIMIT",
    "Company",
    "CorpCode",
    "DailyBar",
    "DartClient",
    "Disclosure",
    "KisClient",
    "NaverClient",
    "NaverQuote",
    "StockPrice",
    "Token",
]
