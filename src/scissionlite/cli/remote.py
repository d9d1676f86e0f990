"""``scissionlite profile --remote``: have an edge daemon profile its own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from scissionlite.cli.usage import usage_errors
from scissionlite.runtimes import RuntimeName
from scissionlite.scissiontl.profile import Profile
from scissionlite.scissiontl.remote_profile import remote_profile

RemoteOption = Annotated[
    str | None,
    typer.Option(
        help="Have the edge daemon at this tensor endpoint (tcp://edge:5555) profile its machine "
        "instead; it must be served with --profile-models."
    ),
]
RemoteControlOption = Annotated[
    str | None,
    typer.Option("--control", help="Its control endpoint.", show_default="the next port"),
]


def profile_there(
    remote: str,
    control: str | None,
    model: str,
    *,
    local: dict[str, object],
    size: int,
    num_classes: int | None,
    runtime: RuntimeName,
    threads: int | None,
    repetitions: int,
    max_tensors: int,
) -> Profile:
    """Request the profile; an option in ``local`` that is not None is wrong usage."""
    for option, value in local.items():
        if value is not None:
            raise typer.BadParameter(
                f"{option} cannot go with --remote: files and names of this machine stay here"
            )
    with usage_errors():
        return remote_profile(
            remote,
            model,
            control=control,
            size=size,
            num_classes=num_classes,
            runtime=runtime,
            threads=threads,
            repetitions=repetitions,
            max_tensors=max_tensors,
        )
