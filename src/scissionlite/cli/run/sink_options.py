"""The options of ``run`` that say where its answers go."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from scissionlite.cli.run.live_line import MakeRoom
from scissionlite.cli.run.mqtt import PASSWORD_VARIABLE, MqttAddress, MqttSink
from scissionlite.cli.run.sinks import JsonDocument, JsonLines, Sink, Table
from scissionlite.cli.usage import usage_errors

_PANEL = "Where the answers go"


def _checked_address(text: str | None) -> str | None:
    if text is not None:
        with usage_errors():
            MqttAddress.parse(text)
    return text


JsonLinesOption = Annotated[
    bool,
    typer.Option(
        "--jsonl",
        help="Print a JSON object on a line for each answer, as it comes.",
        rich_help_panel=_PANEL,
    ),
]
MqttOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Publish each answer to mqtt://USER:PASSWORD@HOST:1883/TOPIC, or mqtts:// for TLS. "
        "TOPIC/status says online or offline. Other users can see a password on the command line: "
        f"the environment variable {PASSWORD_VARIABLE} may hold it instead.",
        callback=_checked_address,
        rich_help_panel=_PANEL,
    ),
]
MqttCaOption = Annotated[
    Path | None,
    typer.Option(
        help="File of the certificates that sign the broker's (mqtts://).",
        show_default="the system's",
        exists=True,
        dir_okay=False,
        rich_help_panel=_PANEL,
    ),
]
MqttIdOption = Annotated[
    str | None,
    typer.Option(
        help="Client id for the broker; each client needs another.",
        show_default="the device's name and a random number",
        rich_help_panel=_PANEL,
    ),
]


class SinkRequest(NamedTuple):
    """The options that name the sinks; the fields are theirs."""

    json: bool
    jsonl: bool
    mqtt: str | None
    mqtt_ca: Path | None
    mqtt_id: str | None

    def check(self) -> None:
        """Check that the options go together.

        Raises
        ------
        typer.BadParameter
            If not.
        """
        if self.json and self.jsonl:
            raise typer.BadParameter("--json and --jsonl both print to the output: give one")
        for option, value in (("--mqtt-ca", self.mqtt_ca), ("--mqtt-id", self.mqtt_id)):
            if value is not None and self.mqtt is None:
                raise typer.BadParameter(f"{option} goes with --mqtt")
        if self.mqtt_ca is not None and not MqttAddress.parse(self.mqtt or "").encrypted:
            raise typer.BadParameter("--mqtt-ca goes with mqtts://, not with mqtt://")

    @property
    def may_share_terminal(self) -> bool:
        """Whether another program takes our rows, and may print them amid the live line."""
        try:
            return self.jsonl and stat.S_ISFIFO(os.fstat(1).st_mode)
        except OSError:  # the output stream is closed
            return False

    def open(self, make_room: MakeRoom, device_name: str, *, newest: int | None) -> list[Sink]:
        """Open the sinks; paho-mqtt is imported only now.

        Parameters
        ----------
        make_room
            Clears the live line while something is printed.
        device_name
            Part of the default client id.
        newest
            Most rows of the table; None for all.

        Raises
        ------
        OSError
            If the file of certificates cannot be read.
        """
        sinks: list[Sink] = []
        if self.mqtt is not None:
            client_id = self.mqtt_id or f"scissionlite-{device_name}-{os.urandom(4).hex()}"
            sinks.append(MqttSink(MqttAddress.parse(self.mqtt), client_id, self.mqtt_ca))
        if self.jsonl:
            sinks.append(JsonLines(make_room))
        elif self.json:
            sinks.append(JsonDocument())
        else:
            sinks.append(Table(newest))
        return sinks
