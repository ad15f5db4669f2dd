"""Webhooks: a signed POST for each event, by the scheme of Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from typing import Final

from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr

from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import WebhookSpec
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, TrackerRun
from gateway.sql.tables import SavedArtifact
from gateway.watch.frames import kind_of
from gateway.webhook_key import signing_key

_GONE: Final = 410


class Webhook:
    """A URL that gets one request for each event."""

    batch = 1
    from_start = False
    idle_seconds: float | None = None

    def __init__(self, spec: WebhookSpec, job: FollowedJob, secret: SecretStr, http: HttpClient) -> None:
        self.kinds = frozenset(spec.kinds)
        self._url, self._job, self._http = spec.url, job, http
        self._secret_name, self._secret = spec.secret, secret
        self.credentials: Sequence[str] = (secret.get_secret_value().strip(),)
        self._key = b""

    async def open(self) -> TrackerRun:
        try:
            self._key = signing_key(self._secret_name, self._secret)
        except ValueError as error:
            raise DeliveryFailed(str(error)) from None
        return TrackerRun()

    async def write(self, events: Sequence[Event]) -> int:
        status = 0
        for event in events:
            headers, body = self._request(event)
            status, _ = await self._http.send("POST", self._url, headers=headers, body=body)
            if status == _GONE:
                raise DeliveryFailed("the receiver answered 410 Gone", http_status=status, final=True)
            if not 200 <= status < 300:
                redirect = "; redirects are not followed" if 300 <= status < 400 else ""
                raise DeliveryFailed(f"the receiver answered {status}{redirect}", http_status=status)
        return status

    async def finish(self, state: str) -> Sequence[SavedArtifact]:
        return ()

    async def close(self) -> None:
        self._key = b""

    def _request(self, event: Event) -> tuple[dict[str, str], bytes]:
        body = json.dumps(
            {
                "type": f"fine_tuning_job.{kind_of(event)}",
                "timestamp": event.event_time.ToJsonString(),
                "data": MessageToDict(event, preserving_proto_field_name=True),
            },
            ensure_ascii=False,
        ).encode()
        id_, timestamp = f"{self._job.integration_id}_{event.sequence}", str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": "finetuneflow",
            "webhook-id": id_,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._key, id_, timestamp, body),
        }
        return headers, body


def signature(key: bytes, id_: str, timestamp: str, body: bytes) -> str:
    """Returns the value of the header webhook-signature."""
    digest = hmac.digest(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"
