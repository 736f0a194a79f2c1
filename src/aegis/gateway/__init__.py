"""
A topic for browsers: the broadcast over WebSocket and Server-Sent Events, as a handler for any aiohttp application.

`board` holds the newest values, encoded once; `access` says who may read; `stream` is one client's writer; `server`
joins them.
"""

from aegis.gateway.access import Access
from aegis.gateway.server import Gateway, GatewayStats

__all__ = ["Access", "Gateway", "GatewayStats"]
