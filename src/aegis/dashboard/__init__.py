"""One page that shows a running system. It reads what it is given; it touches no room."""

from aegis.dashboard.app import Dashboard

__all__ = ["Dashboard"]
