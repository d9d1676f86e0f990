"""``scissionlite export``: a bundle in the form that another server takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.key_options import TrustOption
from scissionlite.cli.output import JsonOption, print_json, print_table


def export(
    to: Annotated[Literal["triton"], typer.Argument(help="The server.")],
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle with ONNX slices.")],
    repository: Annotated[Path, typer.Argument(help="The model repository, a folder.")],
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Write a bundle's edge slices as models of an NVIDIA Triton Inference Server.

    The models decode packed payloads themselves: their inputs are the payloads of devices.
    """
    from scissionlite.runtimes.triton_repository import write_repository

    opened = Bundle.load(bundle, trust)
    names = write_repository(opened, repository)
    if json:
        print_json({"models": names})
        return
    variants = opened.manifest.every_variant
    rows = [[name, variant.name] for name, variant in zip(names, variants, strict=True)]
    print_table(f"Written into {repository}", ["model", "variant"], rows)
