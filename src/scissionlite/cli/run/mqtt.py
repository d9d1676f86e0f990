"""Rows as MQTT messages (paho-mqtt, MQTT 3.1.1, quality of service 1).

    writer: write -> the queue -> publishing thread: Client.publish -> paho's thread: the socket

The queue is bounded: while the broker is away, the oldest rows are dropped and counted. paho
connects again by itself, and sends again what the broker did not confirm. A row may then arrive
twice; its image, frame and time are the same.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from scissionlite.cli.output import print_note, print_warning
from scissionlite.cli.run.results import Row, Summary

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

PASSWORD_VARIABLE: Final = "SCISSIONLITE_MQTT_PASSWORD"
"""The environment variable of the password: other users see a command's arguments."""

QUEUE: Final = 10_000
"""Rows that wait for a broker; a few megabytes."""

UNCONFIRMED: Final = 20
"""Messages that are sent before the broker confirms the first of them."""

LAST_SECONDS: Final = 5.0
"""Time for the broker to take what waits, at the end."""

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_GOODBYE_SECONDS = 1.0
_KEEPALIVE = (
    15  # seconds; a silent broker is found out, and the last will is sent, after 1.5 of them
)
_FIRST_RETRY, _LAST_RETRY = 1, 10  # seconds


class MqttAddress(NamedTuple):
    """A broker and a topic.

    Attributes
    ----------
    host, port
        Of the broker.
    topic
        Of the rows. ``topic/status`` says "online" or "offline".
    user, password
        For the broker; None if it asks for none.
    encrypted
        Whether the connection is TLS.
    """

    host: str
    port: int
    topic: str
    user: str | None
    password: str | None
    encrypted: bool

    @classmethod
    def parse(cls, text: str) -> MqttAddress:
        """Read ``mqtt://[user[:password]@]host[:port]/topic``, or ``mqtts://...`` for TLS.

        The environment may hold the password. The errors never name it.

        Raises
        ------
        ValueError
            If it is not such an address.
        """
        parts = urlsplit(text)
        topic = unquote(parts.path.removeprefix("/"))
        form = "mqtt://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC, or mqtts://..."
        try:
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise ValueError(f"the port must be 1 to 65535: {form}") from error
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"not an address of a broker: {form}")
        if not topic or set(text) & set("?#") or set(topic) & set("+#\0"):
            raise ValueError(f"the topic must be there, without '+', '#' and '?': {form}")
        user = unquote(parts.username) if parts.username else None
        password = os.environ.get(PASSWORD_VARIABLE)
        if parts.password is not None:
            password = unquote(parts.password)
        if password is not None and user is None:
            raise ValueError(f"a password needs a user: {form}")
        return cls(parts.hostname, port, topic, user, password, parts.scheme == "mqtts")

    @property
    def status_topic(self) -> str:
        """The topic that says whether this process runs."""
        return f"{self.topic}/status"


class MqttSink:
    """Publishes rows; connects, and connects again, by itself.

    Parameters
    ----------
    address
        Of the broker, with the topic.
    client_id
        Tells the broker who this is; two clients of one name push each other out.
    ca
        File of the certificates that sign the broker's, for TLS; None takes the system's.

    Raises
    ------
    OSError
        If the file of certificates cannot be read.
    """

    has_summary = False

    def __init__(self, address: MqttAddress, client_id: str, ca: Path | None = None) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        self._address = address
        self._changed = threading.Condition()
        # Under the condition's lock. No call of paho's is made with it: paho's own locks are held
        # where it calls the methods below.
        self._waiting: deque[bytes] = deque()
        self._unconfirmed = 0
        self._dropped = 0
        self._connected = False
        self._closing = False
        self._trouble = ""
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv311
        )
        if address.user is not None:
            self._client.username_pw_set(address.user, address.password)
        if address.encrypted:
            import ssl  # takes long

            self._client.tls_set_context(ssl.create_default_context(cafile=ca))
        self._client.will_set(address.status_topic, "offline", qos=1, retain=True)
        self._client.reconnect_delay_set(_FIRST_RETRY, _LAST_RETRY)
        self._client.max_inflight_messages_set(UNCONFIRMED + 1)  # with the status
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.connect_async(address.host, address.port, _KEEPALIVE)
        self._client.loop_start()
        threading.Thread(target=self._publish_all, name="scissionlite-mqtt", daemon=True).start()

    @property
    def trouble(self) -> str:
        """Whether the broker is away, and how many rows wait or were dropped."""
        with self._changed:
            parts = []
            if not self._connected:
                parts.append(f"MQTT away: {len(self._waiting) + self._unconfirmed:,} wait")
            if self._dropped:
                parts.append(f"MQTT dropped {self._dropped:,}")
            return ", ".join(parts)

    def write(self, row: Row) -> None:
        """Queue a row; the oldest is dropped if there is no room."""
        message = msgspec.json.encode(row)
        with self._changed:
            full = len(self._waiting) >= QUEUE
            if full:
                self._waiting.popleft()
                self._dropped += 1
            first = full and self._dropped == 1
            self._waiting.append(message)
            self._changed.notify_all()
        if first:
            print_warning(f"{QUEUE:,} answers wait for the MQTT broker: the oldest are dropped")

    def finish(self, summary: Summary) -> str | None:
        """Wait a little until the broker has everything; return what it did not get."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._waiting and not self._unconfirmed, LAST_SECONDS
            )
            lost = self._dropped + len(self._waiting) + self._unconfirmed
            why = f": {self._trouble}" if self._trouble else ""
        if not lost:
            return None
        return f"{lost:,} answers did not reach the MQTT broker at {self._place}{why}"

    def close(self) -> None:
        """Say that this process is offline, and disconnect; what waits is dropped."""
        with self._changed:
            self._closing = True
            connected = self._connected
            self._changed.notify_all()
        if connected:
            self._publish(self._address.status_topic, b"offline", retain=True)
            with self._changed:
                self._changed.wait_for(lambda: not self._unconfirmed, _GOODBYE_SECONDS)
        self._client.disconnect()
        with self._changed:
            self._changed.wait_for(lambda: not self._connected, _GOODBYE_SECONDS)

    @property
    def _place(self) -> str:
        return f"{self._address.host}:{self._address.port}"

    def _publish_all(self) -> None:
        """Hand rows to paho, while there is a connection; the publishing thread."""
        while True:
            with self._changed:
                self._changed.wait_for(self._may_publish)
                if self._closing:
                    return
                message = self._waiting.popleft()
                self._unconfirmed += 1
            self._client.publish(self._address.topic, message, qos=1)

    def _may_publish(self) -> bool:
        ready = self._connected and self._waiting and self._unconfirmed < UNCONFIRMED
        return self._closing or bool(ready)

    def _publish(self, topic: str, message: bytes, *, retain: bool) -> None:
        with self._changed:
            self._unconfirmed += 1
        self._client.publish(topic, message, qos=1, retain=retain)

    # paho's thread calls these.

    def _on_publish(self, *_: object) -> None:
        with self._changed:
            self._unconfirmed -= 1
            self._changed.notify_all()

    def _on_connect(
        self,
        client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._say_trouble(f"it refuses: {reason}")
            return
        self._publish(self._address.status_topic, b"online", retain=True)
        with self._changed:
            self._connected = True
            back, self._trouble = bool(self._trouble), ""
            waiting = len(self._waiting)
            self._changed.notify_all()
        if back:
            print_note(f"the MQTT broker at {self._place} is back; {waiting:,} answers waited")

    def _on_connect_fail(self, _client: Client, _data: object) -> None:
        # paho calls this where it handles the error, and does not pass it on.
        error = sys.exc_info()[1]
        self._say_trouble(str(getattr(error, "strerror", None) or error or "no connection"))

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        with self._changed:
            was_connected, self._connected = self._connected, False
            closing = self._closing
            self._changed.notify_all()
        if was_connected and not closing:
            self._say_trouble("the connection was lost")

    def _say_trouble(self, trouble: str) -> None:
        """Print why there is no connection, once while it stays the same."""
        with self._changed:
            known, self._trouble = self._trouble, trouble
        if trouble != known:
            print_warning(f"no MQTT broker at {self._place}: {trouble}; answers wait for it")
