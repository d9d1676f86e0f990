"""Changes of the bundles that are served, as edge clients ask for them over the control socket.

The slices of a bundle are programs, so who loads one decides what runs here. Only clients whose
keys are in the list of administrators may: not one more, whatever the daemon listens on. Bundles
come from this machine's disk; nothing is loaded from the network.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from scissionlite.errors import OffloadError
from scissionlite.keys.authorized import AuthorizedKeys
from scissionlite.offloader.edge.engines.engine import Computation
from scissionlite.offloader.edge.metrics import Metrics
from scissionlite.offloader.edge.served import ServedBundles
from scissionlite.offloader.wire.control import (
    BundlesReply,
    DropBundle,
    Failed,
    FailureCode,
    ListBundles,
    LoadBundle,
    ServedBundle,
    ToDevice,
)

logger = logging.getLogger(__name__)

_FORBIDDEN = (
    "its bundles are changed by administrators only: start it with --key, --authorized and "
    "--admin, a file of their public keys; or with --watch, and change the folder"
)


class Administration:
    """Answers what edge clients ask about bundles. Under the loop's lock, but for the loading.

    Parameters
    ----------
    bundles
        The bundles served.
    metrics
        Their records.
    admin
        Keys of the administrators; None is nobody.
    open_side
        Loads a bundle and its slices.
    put
        Serves a bundle in the place of another one; takes the loop's lock.
    wake
        Has the leader make a step.
    """

    def __init__(
        self,
        bundles: ServedBundles,
        metrics: Metrics,
        admin: AuthorizedKeys | None,
        open_side: Callable[[Path], Computation],
        put: Callable[[Computation, str | None], None],
        wake: Callable[[], None],
    ) -> None:
        self._bundles = bundles
        self._metrics = metrics
        self._admin = admin
        self._open = open_side
        self._put = put
        self._wake = wake
        self._loading: threading.Thread | None = None
        self._loaded: deque[tuple[bytes, int, str]] = deque()  # client, request, what was wrong

    @property
    def loading(self) -> bool:
        """Whether a bundle is being loaded."""
        return self._loading is not None and self._loading.is_alive()

    def answer(
        self, client: bytes, message: ListBundles | LoadBundle | DropBundle, peer: str
    ) -> ToDevice | None:
        """Answer a request at once, or None if :meth:`step` will."""
        if isinstance(message, ListBundles):
            return self._list(message.request)
        if self._admin is not None:
            self._admin.refresh()
        if self._admin is None or peer not in self._admin:
            return _failed(message.request, "forbidden", _FORBIDDEN)
        name = self._admin.name(peer)
        if isinstance(message, DropBundle):
            try:
                self._bundles.drop(message.bundle)
            except OffloadError as error:
                return _failed(message.request, "execution", str(error))
            logger.warning("administrator %s drops bundle %s", name, message.bundle[:12])
            return self._list(message.request)
        if self._loading is not None:
            return _failed(message.request, "busy", "it is loading another bundle")
        logger.warning("administrator %s loads %s", name, message.path)
        self._loading = threading.Thread(
            target=self._load, args=(client, message), name="scissionlite-edge-load", daemon=True
        )
        self._loading.start()
        return None

    def step(self) -> list[tuple[bytes, ToDevice]]:
        """Return the answers to the client whose bundle was loaded, if it was."""
        answers: list[tuple[bytes, ToDevice]] = []
        while self._loaded:
            client, request, trouble = self._loaded.popleft()
            self._loading = None
            failed = _failed(request, "execution", trouble) if trouble else None
            answers.append((client, failed or self._list(request)))
        return answers

    def _load(self, client: bytes, message: LoadBundle) -> None:
        trouble = ""
        try:
            self._put(self._open(Path(message.path)), message.replaces)
        except Exception as error:  # whatever a runtime says of a slice
            trouble = str(error) or repr(error)
            logger.error("%s cannot be served: %s", message.path, trouble)
        self._loaded.append((client, message.request, trouble))
        self._wake()

    def _list(self, request: int) -> BundlesReply:
        return BundlesReply(
            request,
            [
                ServedBundle(
                    each.bundle.id,
                    each.bundle.manifest.model[:100],
                    each.bundle.manifest.kind,
                    each.since,
                    sum(each.requests.values()),
                )
                for each in self._metrics.bundles
            ],
        )


def _failed(request: int, code: FailureCode, message: str) -> Failed:
    return Failed(request, code, message[:1000])
