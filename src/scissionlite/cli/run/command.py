"""``scissionlite run``: answers for pictures, as a device."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.key_options import EdgeKeysOption, KeyOption, TrustOption, keys_of_edges
from scissionlite.cli.link_options import endpoints_to_connect
from scissionlite.cli.model_options import SliceRuntimeOption, ThreadsOption
from scissionlite.cli.output import JsonOption, print_note, warnings_of_the_log
from scissionlite.cli.run.answering import Writer, answer_all
from scissionlite.cli.run.cores import CoresOption, use_cores
from scissionlite.cli.run.live_line import LiveLine
from scissionlite.cli.run.pipeline import Pipeline
from scissionlite.cli.run.service import PrintUnitOption, unit_of
from scissionlite.cli.run.sink_options import (
    JsonLinesOption,
    MqttCaOption,
    MqttIdOption,
    MqttOption,
    SinkRequest,
)
from scissionlite.cli.run.sinks import Sink
from scissionlite.cli.run.source_options import (
    CameraOption,
    ExistingOption,
    FpsOption,
    FramesOption,
    ImagesArgument,
    RescanOption,
    SourceRequest,
    VideoOption,
    WatchOption,
)
from scissionlite.cli.systemd import print_unit_file
from scissionlite.cli.usage import usage_errors
from scissionlite.errors import ScissionLiteError
from scissionlite.offloader import Device, wire
from scissionlite.offloader.device.answers import Fallback
from scissionlite.signals import end_in_order, leave_at_once

SHOWN_ROWS = 20
"""Rows in the table of a source that may have any number of them."""


def run(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: ImagesArgument = [],  # noqa: B006 - typer reads it and never changes it
    watch: WatchOption = None,
    existing: ExistingOption = False,
    rescan: RescanOption = None,
    camera: CameraOption = None,
    video: VideoOption = None,
    fps: FpsOption = None,
    frames: FramesOption = None,
    connect: Annotated[
        list[str],
        typer.Option(
            help="Tensor endpoint of the edge daemon: tcp://host:5555. May be repeated: requests "
            "go to the first that is there.",
            show_default=False,
            callback=endpoints_to_connect,
        ),
    ] = [],  # noqa: B006
    control: Annotated[
        list[str],
        typer.Option(
            help="Its control endpoint; one for each --connect.",
            show_default="the next port",
            callback=endpoints_to_connect,
        ),
    ] = [],  # noqa: B006
    key: KeyOption = None,
    edge_key: EdgeKeysOption = [],  # noqa: B006
    trust: TrustOption = None,
    fallback: Annotated[
        Fallback,
        typer.Option(
            help="Whenever no edge can answer: 'local' answers here, 'last' gives the last answer "
            "again, 'raise' gives none."
        ),
    ] = "raise",
    adapt: Annotated[
        bool | None,
        typer.Option(
            "--adapt/--no-adapt",
            help="Whether to change between the bundle's variants, and with --fallback local to "
            "local answers, as link and edge do.",
            show_default="if the bundle has several variants",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="The only variant to use, by the name that `inspect` shows."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Least accuracy of the variants to use, in percent.", min=0, max=100),
    ] = None,
    deadline: Annotated[
        float,
        typer.Option(
            help="Seconds until an answer is due.", min=0.001, max=wire.MAX_DEADLINE_MS / 1000
        ),
    ] = 5.0,
    in_flight: Annotated[
        int,
        typer.Option(
            help="Requests under way at once. More give more answers a second, each of which takes "
            "longer.",
            min=1,
            max=1024,
        ),
    ] = 1,
    threads: ThreadsOption = None,
    cores: CoresOption = "all",
    runtime: SliceRuntimeOption = None,
    name: Annotated[
        str | None,
        typer.Option(help="The device's name for the daemon.", show_default="the host's name"),
    ] = None,
    slowdown: Annotated[
        float, typer.Option(help="Emulate a device this many times slower.", min=1, max=10_000)
    ] = 1.0,
    repeat: Annotated[
        int, typer.Option(help="Answer every image file this many times.", min=1)
    ] = 1,
    warm_up: Annotated[int, typer.Option(help="Answers before the counted ones.", min=0)] = 1,
    json: JsonOption = False,
    jsonl: JsonLinesOption = False,
    mqtt: MqttOption = None,
    mqtt_ca: MqttCaOption = None,
    mqtt_id: MqttIdOption = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No lines about how it goes on the error stream.")
    ] = False,
    print_unit: PrintUnitOption = False,
) -> None:
    """Answer image files, a watched folder, a camera or a video, and say how long it took.

    Each answer says which machine gave it. A picture that cannot be read, or that gets no answer,
    is an error line; the others are answered, and the exit code is 1. Hidden files and folders in
    a folder are left out. Ctrl-C ends it after the answers that are under way.
    """
    leave_at_once()
    pictures = SourceRequest(images, watch, existing, rescan, camera, video, fps, frames)
    pictures.check(repeat)
    answers = SinkRequest(json, jsonl, mqtt, mqtt_ca, mqtt_id)
    answers.check()
    if print_unit:
        print_unit_file(unit_of(context))
        return
    threads = use_cores(cores, threads)
    opened = Bundle.load(bundle, trust)
    preprocessing = opened.manifest.preprocessing
    if preprocessing is None:
        raise ScissionLiteError(f"{bundle} has no preprocessing, so it cannot read images")
    with ExitStack() as stack:
        stack.enter_context(warnings_of_the_log())
        source = pictures.open(preprocessing)
        stack.callback(source.close)
        with usage_errors():
            device = Device(
                opened,
                connect or None,
                control=control or None,
                fallback=fallback,
                deadline=deadline,
                threads=threads,
                runtime=runtime,
                slowdown=slowdown,
                keys=keys_of_edges(key, edge_key, connect),
                name=name,
                adapt=adapt,
                variant=variant,
                min_accuracy=None if min_accuracy is None else min_accuracy / 100,
            )
        sinks: list[Sink] = []
        live = LiveLine(
            not quiet,
            drawn=not answers.may_share_terminal,
            has_edge=bool(connect) and opened.manifest.kind != "local",
            dropped=lambda: source.dropped,
            troubles=lambda: [sink.trouble for sink in sinks],
        )
        sinks += answers.open(
            live.make_room,
            name or platform.node(),
            newest=SHOWN_ROWS if pictures.is_endless else None,
        )
        for sink in sinks:
            stack.callback(sink.close)
        writer = Writer(sinks, live)
        pipeline = Pipeline(
            source, device, writer.write, in_flight=in_flight, repeat=repeat, warm_up=warm_up
        )
        end_in_order()
        stack.enter_context(device)
        if not quiet and pictures.announcement is not None:
            print_note(pictures.announcement)
        code = answer_all(pipeline, writer, live, deadline=deadline, quiet=quiet)
        for change in () if quiet else device.adaptation.switches:
            print_note(str(change))
    raise typer.Exit(code)
