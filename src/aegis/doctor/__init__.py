"""
A look at everything aegis stands on, as an operator would: what is there, what is wrong, what to do.

    finding.py      one line of the report              report.py     all areas together, in order
    settings.py     the configuration itself            ports.py      what this process will listen on
    redis.py        the shared server                   postgres.py   the database
    upstreams.py    KIS, DART and Naver: name, TLS, and with consent one request each

An area is an async iterator of findings. It never raises for what it finds and leaves nothing behind.
"""

from aegis.doctor.finding import Finding, Verdict
from aegis.doctor.report import AREAS, examine_all

__all__ = ["AREAS", "Finding", "Verdict", "examine_all"]
