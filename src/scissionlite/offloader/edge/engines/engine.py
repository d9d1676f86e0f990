"""The interface between the edge daemon and what runs its slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from scissionlite.bundle import Bundle
from scissionlite.offloader.bundle_tensors import CheckedRequest
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.wire import TensorHeader


class SliceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the slices of a bundle are loaded and run, wherever that is.

    Parameters
    ----------
    threads
        For one run of a slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can there.
    batch
        Most samples that one run may have.
    processor
        "cpu" or "cuda".
    trust
        File of the keys of which one must have signed a bundle that is loaded from a path; None
        takes any.
    """

    threads: int | None = None
    runtime: str | None = None
    batch: int = 1
    processor: str = "cpu"
    trust: str | Path | None = None


class Computation(Protocol):
    """The computation of one bundle. Any thread may call it, and several at once.

    Attributes
    ----------
    bundle : Bundle
        The bundle.
    check : callable
        Checks the tensors of a request, as :func:`.bundle_tensors.request_checker` does.
    batch : int
        Most samples of the jobs that :meth:`finish` is given together; one job may have more.
    trouble : str
        Why it cannot answer now, so that the daemon is not ready; empty if it can, or if that is
        not known.
    """

    bundle: Bundle
    check: Callable[[tuple[TensorHeader, ...]], CheckedRequest]
    batch: int

    @property
    def trouble(self) -> str:
        """Why it cannot answer now."""
        ...

    def finish(self, jobs: Sequence[Job]) -> list[list[Done]]:
        """Answer jobs, and pack the results; each job has one Done. It raises nothing.

        It returns soon after the last job's deadline at the latest, unless a slice runs so long.

        Returns
        -------
        list of list of Done
            The jobs of each run of a slice. Where a run failed, they are one, without frames.
        """
        ...

    def close(self) -> None:
        """Free what it holds: no device has the bundle any more, or the daemon ends."""
        ...


class Engine(Protocol):
    """Runs the slices of bundles.

    Attributes
    ----------
    workers : int
        Calls of :meth:`Computation.finish` at once, unless the user says otherwise.
    """

    workers: int

    def open(self, bundle: Bundle | str | Path, options: SliceOptions) -> Computation:
        """Load a bundle, so that it answers at once from then on; any thread may.

        Raises
        ------
        BundleError, SignatureError, OffloadError, RuntimeUnavailableError
            As :class:`.server.EdgeServer`.
        """
        ...

    def close(self) -> None:
        """Free what it holds. The computations are not used any more."""
        ...
