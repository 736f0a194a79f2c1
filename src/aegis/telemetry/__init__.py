"""Logs and metrics: one look for our lines and yours, secrets masked in all. Importing this configures nothing."""

from aegis.telemetry.log import configure_logging
from aegis.telemetry.metrics import MetricsServer, Sample

__all__ = ["MetricsServer", "Sample", "configure_logging"]
