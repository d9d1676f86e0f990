"""Have a running edge daemon profile a network on its machine."""

from __future__ import annotations

import msgspec
import numpy as np

from scissionlite.errors import CodecError, ProfileError
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.limits import Timeouts
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire.control import ProfileReply, ProfileRequest
from scissionlite.runtimes import RuntimeName
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer.entropy import decompress


def remote_profile(
    connect: str,
    model: str,
    *,
    control: str | None = None,
    size: int = 224,
    num_classes: int | None = None,
    runtime: RuntimeName = "torchscript",
    threads: int | None = None,
    repetitions: int = 20,
    max_tensors: int = 4,
    timeouts: Timeouts | None = None,
    keys: DeviceKeys | None = None,
) -> Profile:
    """Have a network profiled on the edge machine, which must allow it (``--profile-models``).

    Parameters
    ----------
    connect
        Tensor endpoint of the daemon.
    model
        A model name that means the same there: the daemon's machine loads it.
    control
        The daemon's control endpoint; by default the next port.
    size, num_classes, runtime, threads, repetitions, max_tensors
        As for ``scissionlite profile``.
    timeouts
        How long to wait for the profile, and for any sign of life.
    keys
        Of this machine and the daemon, for a daemon that has keys.

    Raises
    ------
    ValueError
        If an endpoint or an option is out of range.
    EdgeUnavailableError
        If no daemon answers there, it falls silent, or the profile is not done in time.
    AuthorizationError
        If the daemon does not take this key, or only one of the two sides has keys.
    EdgeExecutionError
        If profiling failed there; the message is the edge's.
    OffloadError
        If the daemon does not allow this model, profiles for somebody else, or is too old.
    ProfileError
        If its answer is not a profile of this network.
    """
    request = _checked(
        ProfileRequest(1, model, size, num_classes, runtime, threads, repetitions, max_tensors)
    )
    timeouts = timeouts or Timeouts()
    with EdgeClient(connect, control, timeouts, keys) as client:
        client.send(request)
        reply, frames = client.wait_for(ProfileReply, request.request, seconds=timeouts.profile)
        if len(frames) != 1:
            raise ProfileError(f"the edge daemon at {connect} sent no profile")
        try:
            raw = decompress(np.frombuffer(frames[0], np.uint8), "zstd", reply.nbytes)
        except CodecError as error:
            raise ProfileError(f"the edge daemon at {connect} sent no profile: {error}") from error
    profile = Profile.parse(raw.tobytes(), f"the answer of the edge daemon at {connect}")
    if profile.model != model:
        raise ProfileError(f"the edge daemon at {connect} profiled {profile.model}, not {model}")
    return profile


def _checked(request: ProfileRequest) -> ProfileRequest:
    """Return the request as the edge will read it; raise ValueError if the edge would reject it."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ProfileRequest)
    except msgspec.ValidationError as error:
        raise ValueError(f"a profile cannot be requested so: {error}") from error
