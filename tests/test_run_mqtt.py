"""Answers as MQTT messages, through a real broker (mosquitto), which is restarted amid them."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BundleFactory
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from peers import LONG, Frames
from PIL import Image
from typer.testing import CliRunner

from scissionlite.bundle import Bundle
from scissionlite.cli import app
from scissionlite.cli.run import mqtt
from scissionlite.cli.run.mqtt import PASSWORD_VARIABLE, MqttAddress, MqttSink
from scissionlite.cli.run.results import ImageAnswer, Tally

BROKER = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
needs_broker = pytest.mark.skipif(
    BROKER is None, reason="no mosquitto here: apt install mosquitto, as .ci/run does"
)
FIRST = "factory/line 4/camera"


class Broker:
    """A mosquitto that keeps what it has to deliver over a restart."""

    def __init__(self, folder: Path, port: int, *lines: str) -> None:
        self.port = port
        self._file = folder / "mosquitto.conf"
        settings = [
            f"listener {port} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            "user root",
            "max_queued_messages 0",
            *(lines or ["allow_anonymous true"]),
        ]
        self._file.write_text("\n".join(settings) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert BROKER is not None
        self._process = subprocess.Popen(
            [BROKER, "-c", str(self._file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        """End it in order: it keeps what it has confirmed."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(LONG)


@pytest.fixture
def make_broker(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[..., Broker]]:
    made: list[Broker] = []

    def make(*lines: str) -> Broker:
        made.append(Broker(tmp_path, free_port(), *lines))
        made[-1].start()
        return made[-1]

    yield make
    for broker in made:
        broker.stop()


class Subscriber:
    """A client that is told everything, after a restart of the broker too."""

    def __init__(self, port: int, **login: str) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.qualities: set[int] = set()
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, "subscriber", clean_session=False)
        if login:
            self._client.username_pw_set(**login)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._note
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(LONG)

    def _note(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.qualities.add(message.qos)
        self.messages.append((message.topic, bytes(message.payload), message.retain))

    def rows(self, topic: str = FIRST) -> list[dict[str, Any]]:
        return [json.loads(payload) for name, payload, _ in self.messages if name == topic]

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + LONG
        while not condition():
            assert time.monotonic() < until, self.messages
            time.sleep(0.01)

    def status(self) -> list[bytes]:
        return [payload for name, payload, _ in self.messages if name == f"{FIRST}/status"]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    made: list[Subscriber] = []

    def make(port: int, **login: str) -> Subscriber:
        made.append(Subscriber(port, **login))
        return made[-1]

    yield make
    for subscriber in made:
        subscriber.close()


MakeBroker = Callable[..., Broker]
Subscribe = Callable[..., Subscriber]


@pytest.fixture
def image(tmp_path: Path, frames: Frames) -> Path:
    Image.fromarray(frames[0]).save(tmp_path / "0.png")
    return tmp_path / "0.png"


def row(number: int) -> ImageAnswer:
    return ImageAnswer(
        f"{number}", 0, "x", 1.0, {}, 0.01, 1, "edge", None, None, 0.0, {}, number, 0.0
    )


def url_of(broker: Broker) -> str:
    return f"mqtt://127.0.0.1:{broker.port}/{FIRST.replace(' ', '%20')}"


def sink_for(port: int, **options: Any) -> MqttSink:
    return MqttSink(MqttAddress.parse(f"mqtt://127.0.0.1:{port}/{FIRST}"), "sink", **options)


SUMMARY = Tally().summary(0)


@needs_broker
def test_run_publishes_its_rows_and_its_status(
    tiny_bundle: Bundle, image: Path, make_broker: MakeBroker, subscribe: Subscribe
) -> None:
    broker = make_broker()
    told = subscribe(broker.port)
    command = ["run", str(tiny_bundle.path), str(image), "--fallback", "local", "--repeat", "3"]
    done = CliRunner().invoke(app, [*command, "--jsonl", "--mqtt", url_of(broker)])
    assert done.exit_code == 0, done.output
    told.wait_for(lambda: told.status() == [b"online", b"offline"])
    assert told.rows() == [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told.rows()) == 3
    assert told.rows()[0]["class_name"] in tiny_bundle.manifest.classes
    later = subscribe(broker.port)  # takes the other's place, with what it has not acknowledged
    later.wait_for(lambda: (f"{FIRST}/status", b"offline", True) in later.messages)
    assert {topic for topic, _, retained in later.messages if retained} == {f"{FIRST}/status"}


@needs_broker
def test_nothing_is_lost_when_the_broker_is_restarted(
    make_broker: MakeBroker, subscribe: Subscribe, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = make_broker()
    told = subscribe(broker.port)
    sink = sink_for(broker.port)
    for number in range(600):
        sink.write(row(number))
        if number == 200:
            told.wait_for(lambda: len(told.rows()) > 100)
            broker.stop()
            told.wait_for(lambda: sink.trouble)
            assert "MQTT away: " in sink.trouble
        if number == 400:
            broker.start()
        time.sleep(0.001)
    told.wait_for(lambda: len({each["frame"] for each in told.rows()}) == 600)
    assert sink.finish(SUMMARY) is None
    assert sink.trouble == ""
    sink.close()
    told.wait_for(lambda: told.status()[-1] == b"offline")
    assert told.qualities == {1}
    numbers = [each["frame"] for each in told.rows()]
    first_times = [n for i, n in enumerate(numbers) if n not in numbers[:i]]
    assert first_times == list(range(600))
    errors = capsys.readouterr().err
    assert f"warning: no MQTT broker at 127.0.0.1:{broker.port}: the connection was lost" in errors
    assert f"the MQTT broker at 127.0.0.1:{broker.port} is back" in errors
    assert len(errors.splitlines()) <= 3  # a line for each change, not for each attempt


def test_the_oldest_rows_are_dropped_and_counted_while_there_is_no_broker(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free_port: Callable[[], int],
) -> None:
    monkeypatch.setattr(mqtt, "QUEUE", 5)
    monkeypatch.setattr(mqtt, "LAST_SECONDS", 0.1)
    port = free_port()
    sink = sink_for(port)
    for number in range(8):
        sink.write(row(number))
    assert sink.trouble == "MQTT away: 5 wait, MQTT dropped 3"
    assert [json.loads(message)["frame"] for message in sink._waiting] == [3, 4, 5, 6, 7]
    lost = sink.finish(SUMMARY)
    sink.close()
    assert lost is not None
    assert lost.startswith(f"8 answers did not reach the MQTT broker at 127.0.0.1:{port}")
    assert capsys.readouterr().err.count("the oldest are dropped") == 1


def test_run_fails_when_answers_did_not_arrive(
    tiny_bundle: Bundle, image: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    monkeypatch.setattr(mqtt, "LAST_SECONDS", 0.5)
    url = f"mqtt://127.0.0.1:{free_port()}/x"
    command = ["run", str(tiny_bundle.path), str(image), "--fallback", "local", "--mqtt", url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "1 answers" in done.stdout  # the table is there
    assert "error: 1 answers did not reach the MQTT broker at 127.0.0.1:" in done.stderr
    assert "Connection refused" in done.stderr


@pytest.mark.long
@needs_broker
def test_a_killed_process_is_offline(
    make_bundle: BundleFactory,
    image: Path,
    tmp_path: Path,
    make_broker: MakeBroker,
    subscribe: Subscribe,
) -> None:
    broker = make_broker()
    told = subscribe(broker.port)
    bundle = make_bundle("local", runtime="torchscript")
    command = ["run", str(bundle.path), "--watch", str(tmp_path), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scissionlite", *command, "--mqtt", url_of(broker)]
    )
    told.wait_for(lambda: told.status() == [b"online"])
    process.kill()
    process.wait(LONG)
    told.wait_for(lambda: told.status() == [b"online", b"offline"])


@needs_broker
def test_a_password_opens_the_broker_and_no_other_does(
    tmp_path: Path,
    make_broker: MakeBroker,
    subscribe: Subscribe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    password = "p@ss/w:rd"
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "device 7", password], check=True)
    broker = make_broker("allow_anonymous false", f"password_file {passwords}")
    told = subscribe(broker.port, username="device 7", password=password)

    def publish(user: str, number: int) -> str | None:
        address = MqttAddress.parse(f"mqtt://{user}@127.0.0.1:{broker.port}/{FIRST}")
        sink = MqttSink(address, "sink")
        sink.write(row(number))
        lost = sink.finish(SUMMARY)
        sink.close()
        return lost

    monkeypatch.setattr(mqtt, "LAST_SECONDS", 1.0)
    assert "it refuses: Not authorized" in str(publish("device%207:wrong", 1))
    assert "wrong" not in capsys.readouterr().err
    monkeypatch.setattr(mqtt, "LAST_SECONDS", LONG)
    assert publish("device%207:p%40ss%2Fw%3Ard", 2) is None
    monkeypatch.setenv(PASSWORD_VARIABLE, password)
    assert publish("device%207", 3) is None
    told.wait_for(lambda: [each["frame"] for each in told.rows()] == [2, 3])


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")
@needs_broker
def test_tls_takes_the_certificates_that_were_given_and_no_others(
    tmp_path: Path,
    make_broker: MakeBroker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here: it makes the broker's certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", *words.split(), "-keyout", key, "-out", certificate, *names],
        check=True,
        capture_output=True,
    )
    broker = make_broker("allow_anonymous true", f"certfile {certificate}", f"keyfile {key}")
    address = MqttAddress.parse(f"mqtts://127.0.0.1:{broker.port}/x")
    sink = MqttSink(address, "sink", certificate)
    sink.write(row(1))
    assert sink.finish(SUMMARY) is None
    sink.close()
    monkeypatch.setattr(mqtt, "LAST_SECONDS", 1.0)
    stranger = MqttSink(address, "sink")
    stranger.write(row(2))
    assert "certificate verify failed" in str(stranger.finish(SUMMARY))
    stranger.close()
    with pytest.raises((OSError, ssl.SSLError)):
        MqttSink(address, "sink", tmp_path / "none.pem")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://broker/a/b", MqttAddress("broker", 1883, "a/b", None, None, False)),
        ("mqtts://broker/a", MqttAddress("broker", 8883, "a", None, None, True)),
        ("mqtt://u:p%40@[::1]:99/%C3%A4", MqttAddress("::1", 99, "ä", "u", "p@", False)),
        ("mqtt://u@broker/a", MqttAddress("broker", 1883, "a", "u", None, False)),
        ("mqtt://u:@broker/a", MqttAddress("broker", 1883, "a", "u", "", False)),
    ],
)
def test_addresses(text: str, expected: MqttAddress) -> None:
    assert MqttAddress.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("broker/topic", "not an address of a broker"),
        ("http://broker/topic", "not an address of a broker"),
        ("mqtt:///topic", "not an address of a broker"),
        ("mqtt://u:secret@broker:99999/x", "the port must be 1 to 65535"),
        ("mqtt://u:secret@broker", "the topic must be there"),
        ("mqtt://u:secret@broker/", "the topic must be there"),
        ("mqtt://u:secret@broker/a/#", "the topic must be there"),
        ("mqtt://u:secret@broker/a/+/b", "the topic must be there"),
        ("mqtt://broker/a?qos=2", "the topic must be there"),
        ("mqtt://:secret@broker/a", "a password needs a user"),
    ],
)
def test_wrong_addresses_are_told_without_their_password(text: str, said: str) -> None:
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["run", "b", "x.png", "--mqtt", text])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "'--mqtt'" in done.stderr
    assert "secret" not in done.stderr


def test_a_password_of_the_environment_needs_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    assert MqttAddress.parse("mqtt://u:own@broker/a").password == "own"
    assert MqttAddress.parse("mqtt://u@broker/a").password == "secret"
    with pytest.raises(ValueError, match="a password needs a user"):
        MqttAddress.parse("mqtt://broker/a")
