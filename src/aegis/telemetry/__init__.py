"""
Logs, metrics and vitals: one look for lines, ours and yours, secrets masked in all. Importing configures nothing.

    log.py      every line of a process       _mask.py, _fold.py   what may be shown, and how often
    sample.py   one number                    rooms.py             what the rooms count, as samples
    metrics.py  Prometheus                    _peers.py, _home.py  how the processes of a host share a port
    otel.py     OpenTelemetry; an extra, so it is imported by name alone
    vitals.py   what every process of the fleet tells the others about itself
"""

from aegis.telemetry._mask import secrets_of
from aegis.telemetry.log import configure_logging, log_context
from aegis.telemetry.metrics import MetricsServer, on_loop
from aegis.telemetry.rooms import samples_of
from aegis.telemetry.sample import Sample
from aegis.telemetry.vitals import KEEP_S, VITALS_TOPIC, Vital, Vitals, vitals_bus

__all__ = [
    "KEEP_S",
    "VITALS_TOPIC",
    "MetricsServer",
    "Sample",
    "Vital",
    "Vitals",
    "configure_logging",
    "log_context",
    "on_loop",
    "samples_of",
    "secrets_of",
    "vitals_bus",
]
