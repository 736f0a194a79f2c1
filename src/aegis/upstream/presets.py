"""
What the upstreams allow, each number with its source and the day it was read.

None of the three sends rate headers, and two numbers are only relayed by users, so the presets are the careful reading.
The quota belongs to the app key (KIS), to the key and the address (DART), or to courtesy (Naver): pass the account as
`key=` where several share one process.
"""

from __future__ import annotations

from aegis.redis import Rate, RateLimit

#: 5/s: the reference's preset, safe on a normal real account. The official samples pace at 20/s
#: (koreainvestment/open-trading-api, 2026-07-09); a notice of 2026-04-20, relayed by users, says 18/s; users saw
#: refusals from 15/s on (read 2026-11-23).
KIS_RATE_LIMIT = RateLimit("kis", Rate(5, per=1))

#: 1/s: paper trading (모의투자) by the relayed notice of 2026-04-20; the samples of 2026-07-09 still pace at 2/s.
KIS_PAPER_RATE_LIMIT = RateLimit("kis-paper", Rate(1, per=1))

#: 3/s: a new customer's first three days, by the relayed notice of 2026-04-20.
KIS_NEW_CUSTOMER_RATE_LIMIT = RateLimit("kis-new", Rate(3, per=1))

#: 1/s: balance, orderable amount and fills (원장), beside the gateway's limit; over it EGW00215. By users' measurements
#: (qwq-partners/qwq-ai-trader, dragon1086/prism-insight, read 2026-11-23).
KIS_LEDGER_RATE_LIMIT = RateLimit("kis-ledger", Rate(1, per=1))

#: 1/min: token issue, by the README of the official samples (2026-07-09); over it 403 EGW00133, since 2023-10-27.
KIS_TOKEN_RATE_LIMIT = RateLimit("kis-token", Rate(1, per=60), hold_max=60.0)

#: 100/min: the reference's preset. Nothing is documented; users report a block of the address for 24 hours above about
#: 1,000/min (dart-fss issues 167 and 179, read 2026-11-23).
DART_RATE_LIMIT = RateLimit("dart", Rate(100, per=60))

#: 100/min and 20,000 a day: the guide's text of status 020 (opendart.fss.or.kr/guide, read 2026-11-23) names 20,000;
#: that it is a day's is users' experience. For whoever polls all day: 100/min would be 144,000.
DART_DAILY_RATE_LIMIT = RateLimit("dart-daily", Rate(100, per=60), Rate(20_000, per=86_400))

#: 10/s: the reference's courtesy; Naver documents nothing, and no refusal was found (read 2026-11-23).
NAVER_RATE_LIMIT = RateLimit("naver", Rate(10, per=1))
