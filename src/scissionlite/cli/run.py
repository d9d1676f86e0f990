"""``scissionlite run``: answers for image files, as a device."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import typer

from scissionlite.bundle import Bundle, Manifest
from scissionlite.cli.key_options import EdgeKeyOption, KeyOption, TrustOption, device_keys
from scissionlite.cli.link_options import endpoint_to_connect
from scissionlite.cli.model_options import SliceRuntimeOption, ThreadsOption
from scissionlite.cli.output import (
    JsonOption,
    kilobytes,
    milliseconds,
    print_error,
    print_json,
    print_table,
    printable,
)
from scissionlite.cli.usage import usage_errors
from scissionlite.errors import ImageError, ScissionLiteError
from scissionlite.image_files import find_images
from scissionlite.images import Preprocessing
from scissionlite.offloader import Answer, Device, wire
from scissionlite.signals import end_in_order, leave_at_once


class ImageAnswer(msgspec.Struct):
    """One row of the command's answer; ``latency`` and ``timings`` in seconds.

    ``class_index``, ``class_name`` and ``confidence`` are a classifier's; of other networks'
    answers, only the shapes of their tensors are shown.
    """

    image: str
    class_index: int | None
    class_name: str | None
    confidence: float | None
    shapes: dict[str, tuple[int, ...]]
    latency: float
    bytes_sent: int
    where: str
    timings: dict[str, float]


class UnreadImage(msgspec.Struct):
    """An image file that could not be read, and why."""

    image: str
    error: str


class Summary(msgspec.Struct):
    """All answers together; latencies in seconds, null if there are no answers."""

    answers: int
    edge: int
    local: int
    latency_median: float | None
    latency_p95: float | None
    bytes_sent: int


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    connect: Annotated[
        str | None,
        typer.Option(
            help="Tensor endpoint of the edge daemon: tcp://host:5555.",
            callback=endpoint_to_connect,
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="Its control endpoint.", show_default="the next port", callback=endpoint_to_connect
        ),
    ] = None,
    key: KeyOption = None,
    edge_key: EdgeKeyOption = None,
    trust: TrustOption = None,
    fallback: Annotated[
        Literal["local"] | None,
        typer.Option(help="'local' answers here whenever the edge cannot."),
    ] = None,
    deadline: Annotated[
        float,
        typer.Option(
            help="Seconds until an answer is due.", min=0.001, max=wire.MAX_DEADLINE_MS / 1000
        ),
    ] = 5.0,
    threads: ThreadsOption = None,
    runtime: SliceRuntimeOption = None,
    name: Annotated[
        str | None,
        typer.Option(help="The device's name for the daemon.", show_default="the host's name"),
    ] = None,
    slowdown: Annotated[
        float, typer.Option(help="Emulate a device this many times slower.", min=1, max=10_000)
    ] = 1.0,
    repeat: Annotated[int, typer.Option(help="Answer every image this many times.", min=1)] = 1,
    warm_up: Annotated[int, typer.Option(help="Answers before the counted ones.", min=0)] = 1,
    json: JsonOption = False,
) -> None:
    """Answer images one after the other, and say how long each took and who answered it.

    An image that cannot be read gets an error line; the others are answered, and the exit code is
    1. Hidden files and folders in a folder are left out.
    """
    leave_at_once()
    opened = Bundle.load(bundle, trust)
    preprocessing = opened.manifest.preprocessing
    if preprocessing is None:
        raise ScissionLiteError(f"{bundle} has no preprocessing, so it cannot read images")
    files = _image_files(images)
    with usage_errors():
        device = Device(
            opened,
            connect,
            control=control,
            fallback=fallback,
            deadline=deadline,
            threads=threads,
            runtime=runtime,
            slowdown=slowdown,
            keys=device_keys(key, edge_key),
            name=name,
        )
    end_in_order()
    with device:
        answers, unread = _answers(device, files, preprocessing, warm_up=warm_up, repeat=repeat)
    summary = _summary(answers)
    if json:
        print_json({"answers": answers, "unread": unread, "summary": summary})
    else:
        _print(answers, summary)
    if unread:
        raise typer.Exit(1)


def _answers(
    device: Device, files: list[Path], preprocessing: Preprocessing, *, warm_up: int, repeat: int
) -> tuple[list[ImageAnswer], list[UnreadImage]]:
    answers: list[ImageAnswer] = []
    unread: list[UnreadImage] = []
    for file in files:
        try:
            frame = preprocessing.frame(file)
        except ImageError as error:
            print_error(f"{type(error).__name__}: {error}")
            unread.append(UnreadImage(printable(str(file)), printable(str(error))))
            continue
        for _ in range(0 if answers else warm_up):
            device.infer(frame)
        for _ in range(repeat):
            answer = device.submit(frame).result()
            answers.append(_row(file, answer, device.bundle.manifest))
    return answers, unread


def _summary(answers: list[ImageAnswer]) -> Summary:
    latencies = [answer.latency for answer in answers]
    return Summary(
        answers=len(answers),
        edge=sum(answer.where == "edge" for answer in answers),
        local=sum(answer.where == "local" for answer in answers),
        latency_median=statistics.median(latencies) if latencies else None,
        latency_p95=float(np.percentile(latencies, 95)) if latencies else None,
        bytes_sent=sum(answer.bytes_sent for answer in answers),
    )


def _image_files(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += find_images(path).files
        elif path.exists() or path.is_symlink():
            files.append(path)
        else:
            raise typer.BadParameter(f"{path} does not exist")
    if not files:
        raise typer.BadParameter(f"no image files in {', '.join(map(str, paths))}")
    return files


def _row(file: Path, answer: Answer, manifest: Manifest) -> ImageAnswer:
    index = name = confidence = None
    shapes = {tensor.name: tensor.shape for tensor in manifest.outputs}
    if isinstance(answer.output, np.ndarray) and answer.output.ndim == 2:
        logits = answer.output[0].astype(np.float64)
        index = int(logits.argmax())
        name = manifest.classes[index] if index < len(manifest.classes) else None
        confidence = float(1 / np.exp(logits - logits[index]).sum())  # softmax of the largest
    return ImageAnswer(
        image=printable(str(file)),
        class_index=index,
        class_name=name,
        confidence=confidence,
        shapes=shapes,
        latency=answer.latency,
        bytes_sent=answer.bytes_sent,
        where=answer.where,
        timings=answer.timings,
    )


def _print(answers: list[ImageAnswer], summary: Summary) -> None:
    rows = [
        [
            answer.image,
            answer.class_name or _label(answer),
            "" if answer.confidence is None else f"{answer.confidence:.1%}",
            milliseconds(answer.latency),
            kilobytes(answer.bytes_sent),
            answer.where,
        ]
        for answer in answers
    ]
    columns = ["image", "answer", "confidence (%)", "latency (ms)", "sent (kB)", "answered by"]
    caption = f"{summary.edge} by the edge, {summary.local} locally"
    if summary.latency_median is not None and summary.latency_p95 is not None:
        median, p95 = milliseconds(summary.latency_median), milliseconds(summary.latency_p95)
        caption = f"median {median} ms, p95 {p95} ms; {caption}"
    print_table(f"{summary.answers} answers", columns, rows, caption=caption)


def _label(answer: ImageAnswer) -> str:
    if answer.class_index is not None:
        return str(answer.class_index)
    return ", ".join(f"{name} {'x'.join(map(str, s))}" for name, s in answer.shapes.items())
