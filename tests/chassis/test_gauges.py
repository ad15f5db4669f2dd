"""Prometheus gauges are served only on the configured address."""

import urllib.request

import pytest

from chassis.server.gauges import serve_gauges
from standalone.ports import free_port


def test_gauges_are_served_on_request() -> None:
    address = f"127.0.0.1:{free_port()}"
    serve_gauges(address)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for name in ("ftf_spooled_events", "ftf_event_accepted_seconds_bucket", "ftf_watchers", "ftf_commit_seconds_count"):
        assert f"\n{name}" in text


def test_port_in_use_is_an_error() -> None:
    address = f"127.0.0.1:{free_port()}"
    serve_gauges(address)
    with pytest.raises(OSError, match="in use"):
        serve_gauges(address)
