"""Logs and metrics: one look for our lines and yours, secrets masked in all. Importing this configures nothing."""

from aegis.telemetry._mask import secrets_of
from aegis.telemetry.log import configure_logging, log_context
from aegis.telemetry.metrics import MetricsServer, Sample

__all__ = ["MetricsServer", "Sample", "configure_logging", "log_context", "secrets_of"]
