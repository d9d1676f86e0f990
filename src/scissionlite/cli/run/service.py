"""``scissionlite run ... --print-unit``: a unit file of systemd for the same command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from scissionlite.cli.run.mqtt import PASSWORD_VARIABLE, MqttAddress
from scissionlite.cli.systemd import CREDENTIALS, device_unit
from scissionlite.cli.usage import Context

PATHS = {"bundle", "watch", "key", "edge_key", "trust", "mqtt_ca"}
"""The options of ``run`` whose values are paths."""

PrintUnitOption = Annotated[
    bool,
    typer.Option(
        "--print-unit",
        help="Print a unit file for systemd that starts this installation with the same options, "
        "and exit.",
    ),
]

_CAMERA = """# Its camera: V4L2 devices, which belong to the group video.
SupplementaryGroups=video
DevicePolicy=closed
DeviceAllow=char-video4linux rw
"""
_NO_DEVICES = "PrivateDevices=yes\n"
_MQTT = f"""# A line {PASSWORD_VARIABLE}=..., for the broker; readable by root alone.
EnvironmentFile=-/etc/scissionlite/device.env
"""


def unit_of(context: Context) -> str:
    """Make the unit file of a command line of ``run``.

    Raises
    ------
    typer.BadParameter
        If it is no service: it ends by itself, or it tells a password.
    """
    values = context.params
    if values["images"]:
        raise typer.BadParameter("--print-unit goes with --watch, --camera or --video: a service")
    if values["mqtt"] is not None:
        _check_secret(values["mqtt"])
    words, credentials = ["run"], {}
    for parameter in context.command.params:
        name, given = parameter.name, context.get_parameter_source(parameter.name)
        if name == "print_unit" or given is None or given.name != "COMMANDLINE":
            continue
        value = values[name]
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            word = str(Path(each).absolute() if name in PATHS else each)
            if name == "key":  # the service's user cannot read it
                credentials["device.key"] = Path(word)
                word = f"{CREDENTIALS}/device.key"
            words += [parameter.opts[0], word] if parameter.param_type_name == "option" else [word]
    extra = _NO_DEVICES if values["camera"] is None else _CAMERA
    return device_unit(words, credentials, extra + (_MQTT if values["mqtt"] is not None else ""))


def _check_secret(address: str) -> None:
    """Refuse an address that holds the broker's password: everybody may read a unit file."""
    parsed = MqttAddress.parse(address)
    if parsed.password is not None and parsed.password != os.environ.get(PASSWORD_VARIABLE):
        raise typer.BadParameter(
            "--print-unit: leave the password out of --mqtt, since everybody may read a unit file. "
            f"/etc/scissionlite/device.env holds it instead, in a line {PASSWORD_VARIABLE}=..."
        )
