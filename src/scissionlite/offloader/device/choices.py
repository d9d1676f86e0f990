"""The choices that a device has for an input, with what each costs at first."""

from __future__ import annotations

import numpy as np

from scissionlite.bundle import Bundle
from scissionlite.manifest import Manifest, Variant
from scissionlite.offloader.device.adaptation import LOCAL, Adaptation, Costs
from scissionlite.offloader.device.side import DeviceSide, LocalSide
from scissionlite.offloader.stopwatch import Stopwatch


def allowed_variants(
    manifest: Manifest, variant: str | None, min_accuracy: float | None
) -> list[Variant]:
    """The variants that a device may use, the preferred one first.

    Parameters
    ----------
    manifest
        The bundle's.
    variant
        Name of the only one; None allows all.
    min_accuracy
        Least accuracy on the validation samples, 0 to 1; None allows any.

    Raises
    ------
    ValueError
        If there is no variant of this name, or none is accurate enough.
    """
    every = manifest.every_variant
    if not every and variant is None and min_accuracy is None:
        return []
    named = [each for each in every if variant in (None, each.name)]
    if not named:
        raise ValueError(
            f"the bundle has no variant {variant!r}: it has {', '.join(e.name for e in every)}"
        )
    if min_accuracy is None:
        return named
    accurate = [e for e in named if e.accuracy is not None and e.accuracy.after >= min_accuracy]
    if not accurate:
        measured = ", ".join(
            f"{each.name} {'was not measured' if a is None else f'has {a.after:.2%}'}"
            for each, a in ((each, each.accuracy) for each in named)
        )
        raise ValueError(
            f"no variant has an accuracy of {min_accuracy:.2%}: {measured}. Prepare the bundle "
            "with validate=, and with a milder Transfer Layer"
        )
    return accurate


def make_adaptation(
    variants: list[Variant],
    side: DeviceSide | None,
    local: LocalSide | None,
    bundle: Bundle,
    slowdown: float,
    *,
    adapts: bool,
) -> Adaptation:
    """Make the adaptation of a device.

    Parameters
    ----------
    variants
        Those that may be used, the preferred one first.
    side, local
        The device's part of the computation, and the uncut network, if there are.
    bundle
        The bundle.
    slowdown
        As the stopwatch's.
    adapts
        Whether there is a choice; otherwise the first variant is used. Each variant's part on the
        device is run once then, to measure it.
    """
    first = variants[0].name if variants else ""
    if side is None or not adapts:
        return Adaptation([Costs(LOCAL if side is None else first, 0.0)])
    choices = [_costs(each, side, bundle, slowdown) for each in variants]
    if not choices:
        choices = [_costs_of_images(side, bundle, slowdown)]
    if local is not None:
        choices.append(Costs(LOCAL, local.seconds))
    return Adaptation(choices)


def _costs(variant: Variant, side: DeviceSide, bundle: Bundle, slowdown: float) -> Costs:
    zeros = tuple(np.zeros(tensor.shape, tensor.dtype) for tensor in bundle.manifest.inputs)
    watch = Stopwatch(slowdown)
    side.make_request(zeros, watch, variant.name)
    seconds = watch.seconds["device_slice"] + watch.seconds["encode"]
    # An entropy coder sends less of real inputs than it may, and more than of zeros.
    measured = variant.accuracy.sent_bytes if variant.accuracy is not None else 0.0
    return Costs(variant.name, seconds, measured or variant.sent_bytes)


def _costs_of_images(side: DeviceSide, bundle: Bundle, slowdown: float) -> Costs:
    manifest = bundle.manifest
    assert manifest.preprocessing is not None
    watch = Stopwatch(slowdown)
    frame = np.zeros(manifest.preprocessing.frame_shape, np.uint8)
    _, payloads = side.make_request((frame,), watch)
    measured = manifest.accuracy.sent_bytes if manifest.accuracy is not None else 0.0
    name = str(manifest.image_format)
    return Costs(name, watch.seconds["encode"], measured or len(payloads[0]))
