"""Logs, metrics and vitals: one look for lines, ours and yours, secrets masked in all. Importing configures nothing."""

from aegis.telemetry._mask import secrets_of
from aegis.telemetry.log import configure_logging, log_context
from aegis.telemetry.metrics import MetricsServer, Sample
from aegis.telemetry.vitals import VITALS_TOPIC, Vital, Vitals, vitals_bus

__all__ = [
    "VITALS_TOPIC",
    "MetricsServer",
    "Sample",
    "Vital",
    "Vitals",
    "configure_logging",
    "log_context",
    "secrets_of",
    "vitals_bus",
]
