"""The options of the Ray engine, without Ray: the command line reads them."""

from __future__ import annotations

from typing import Annotated

import msgspec


class RayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which Ray cluster runs the slices, and with how many replicas.

    Parameters
    ----------
    address
        Ray cluster: "auto", the one that runs on this machine, or HOST:PORT of its head node. This
        machine must be one of its nodes (`ray start --address HOST:PORT`).
    replicas
        Fewest replicas of a bundle's slice: processes that Ray Serve keeps.
    max_replicas
        Most replicas of a bundle's slice; with more than ``replicas``, Serve adds and removes them
        by the requests under way.
    target_ongoing
        Calls under way for each replica that Serve aims at when it adds or removes replicas.
    upscale_delay
        Seconds of more calls before Serve adds replicas.
    downscale_delay
        Seconds of fewer calls before Serve removes replicas; a bundle that is served no longer
        loses its last one after them.
    cpus
        CPUs that Ray reserves for a replica; also its threads, unless the daemon's say otherwise.
    gpus
        GPUs that Ray reserves for a replica; a fraction shares one.
    replica_batch_delay
        Longest time in seconds that a replica waits for calls of other daemons, to run them
        together (`serve.batch`); 0 is not at all. Each daemon joins its own requests in any case.
    start_seconds
        Longest time in seconds for a bundle's first replica to start.

    Raises
    ------
    ValueError
        If ``max_replicas`` is less than ``replicas``.
    """

    address: str = "auto"
    replicas: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    max_replicas: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    target_ongoing: Annotated[float, msgspec.Meta(ge=0.1, le=1000)] = 2.0
    upscale_delay: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    downscale_delay: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 120.0
    cpus: Annotated[float, msgspec.Meta(ge=0, le=1024)] = 1.0
    gpus: Annotated[float, msgspec.Meta(ge=0, le=64)] = 0.0
    replica_batch_delay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    start_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 120.0

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than replicas={self.replicas}"
            )

    @property
    def most_replicas(self) -> int:
        """Most replicas of a bundle's slice."""
        return self.replicas if self.max_replicas is None else self.max_replicas
