"""
One local server that behaves as KIS, DART and Naver do, refusals included, and counts every violation it sees.

`market.py` is the prices behind it (a replayed CSV or a seeded walk), `quota.py` counts arrivals, `kis.py`, `dart.py`
and `naver.py` speak as the three do, `faults.py` is what can go wrong, `server.py` joins them. Run it alone with
`aegis sim`.
It imitates shapes and refusals recorded in public sources, and is nobody's official test system.
"""

from aegis.upstream.simulator.faults import Fault
from aegis.upstream.simulator.market import Market, check_replay
from aegis.upstream.simulator.server import Simulator
from aegis.upstream.simulator.state import Rules

__all__ = ["Fault", "Market", "Rules", "Simulator", "check_replay"]
