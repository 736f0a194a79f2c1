"""
The live page: quotes, limits, cache, requests, pool and servers, as they are now.

`app.py` is the web application, `watch.py` looks at what no process tells (windows of the limits, health of the
servers), `history.py` remembers what the small charts begin with, `static/` is the page: no build step, nothing from
elsewhere. Everything live comes over the gateway of the broadcast.
"""

from aegis.dashboard.app import Dashboard

__all__ = ["Dashboard"]
