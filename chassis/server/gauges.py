"""Metrics of a process for Prometheus, served on `FTF_<SERVICE>_METRICS`; not served by default.

Names and meanings are in docs/operations.md.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_COUNTS = (1, 2, 4, 8, 16, 32)

SPOOLED_EVENTS = Gauge("ftf_spooled_events", "Events of running attempts that no gateway has accepted yet")
ACCEPTED_SECONDS = Histogram(
    "ftf_event_accepted_seconds",
    "From the moment an event came out of the child's pipe until a gateway had accepted it",
    buckets=_LATENCIES,
)
EVICTED_MODEL_BYTES = Counter(
    "ftf_evicted_model_bytes", "Bytes of downloaded models that this process deleted to make room for another"
)
REPORTS = Counter("ftf_reports", "Reports decided on, heartbeats included")
EVENTS = Counter("ftf_events_accepted", "Events that workers reported and this gateway accepted")
COMMIT_SECONDS = Histogram("ftf_commit_seconds", "Duration of a COMMIT (SQLite)", buckets=_LATENCIES)
COMMIT_DECISIONS = Histogram("ftf_commit_decisions", "Decisions that shared a COMMIT (SQLite)", buckets=_COUNTS)
WATCHERS = Gauge("ftf_watchers", "Open watch streams")
RING_BYTES = Gauge("ftf_ring_bytes", "Bytes of events held for watchers")
WATCH_LAG_EVENTS = Gauge("ftf_watch_lag_events", "Events that the slowest watcher is behind")
DELIVERIES = Gauge("ftf_deliveries", "Deliveries to webhooks and trackers that this process has taken")


def serve_gauges(address: str) -> None:
    """Serves GET /metrics on host:port from a thread; "" serves nothing. Raises OSError if the port is taken."""
    if address:
        host, _, port = address.rpartition(":")
        start_http_server(int(port), host)
