"""Logs: one look for our lines and yours, secrets masked in all of them. Importing this configures nothing."""

from aegis.telemetry.log import configure_logging

__all__ = ["configure_logging"]
