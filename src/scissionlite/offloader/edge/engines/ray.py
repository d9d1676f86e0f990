"""The slices run in replicas of Ray Serve, on the nodes of a Ray cluster.

Each bundle is an application of Serve, whose name has the bundle's id: a request can only reach the
slice that it was made for. The daemons are its clients. They start the application if it does not
run, and leave it running when they end, so that any number of them share its replicas, and one that
dies takes nothing with it.

A call whose replica or node dies is made again, while there is time: an answer depends on nothing
but the request. A job is answered once, because it ends in one Done.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, OffloadError
from scissionlite.offloader.bundle_tensors import request_checker, request_tensors
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.engines.ray_options import RayOptions
from scissionlite.offloader.edge.engines.ray_replica import (
    EdgeReplica,
    Reply,
    Request,
    Setting,
    as_array,
)
from scissionlite.offloader.edge.log_limit import LogLimit
from scissionlite.offloader.edge.results import failed
from scissionlite.offloader.edge.schedule import Done, Job

logger = logging.getLogger(__name__)

_LEAST_WORKERS = 8
_PAUSE = 0.02  # seconds before a call is made again
_PATIENCE = 4.0  # a call may take so many times the usual time before it is made again
_ONGOING = 16  # calls that a replica takes at once; it runs one, the others are there already
_SURGE = (
    25  # per cent of the replicas, and one at least, that an update starts before it ends others
)
_REACH = 5.0  # seconds for a connection to the head node
_LOOK = 0.2  # seconds between two looks at an application that starts
_CONSTRUCTED = 2  # times that a replica that cannot load its bundle is started again


class RayEngine:
    """Opens bundles as applications of Ray Serve.

    Parameters
    ----------
    options
        The cluster, and the replicas.

    Raises
    ------
    OffloadError
        If there is no such cluster, or it does not take this process.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self.workers = max(_LEAST_WORKERS, 2 * options.most_replicas)
        self._lock = threading.Lock()
        self._opened: Counter[str] = Counter()  # by bundle id, under the lock
        self._connected = not ray.is_initialized()
        if self._connected:
            try:
                _check_reachable(options.address)
                ray.init(
                    options.address,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level=logging.WARNING,
                )
            except (OSError, RuntimeError, ValueError, RayError) as error:
                raise OffloadError(
                    f"no Ray cluster at {options.address!r} takes this process "
                    f"({str(error).strip().splitlines()[0]}): `ray start --head` starts one here, "
                    "`ray start --address HOST:PORT` joins one"
                ) from error
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")  # devices speak to the daemons, not to HTTP proxies

    def open(self, bundle: Bundle | str | Path, options: SliceOptions) -> RayComputation:
        """Start a bundle's application, or join it; any thread may.

        It is updated if it has other settings: Serve then replaces its replicas one after another.

        Raises
        ------
        BundleError
            If the bundle is missing or not valid, here or where the replicas run.
        OffloadError
            If it has no work for an edge, or no replica starts in time.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle, options.trust)
        if bundle.manifest.tiers == 3:
            bundle = bundle.second_hop  # whose edge slice the replicas run
        request_tensors(bundle.manifest)
        setting = self._setting(bundle, options)
        with self._lock:
            handle, batch = self._start(setting)
            self._opened[bundle.id] += 1
        logger.info("%s runs in Ray's replicas, as %s", bundle.manifest.model, _name(bundle.id))
        return RayComputation(bundle, handle, batch, lambda: self._release(setting))

    def close(self) -> None:
        """Leave the cluster. The applications stay, for other daemons and for the next start."""
        if self._connected:
            ray.shutdown()

    def _setting(self, bundle: Bundle, options: SliceOptions) -> Setting:
        threads = options.threads or max(1, int(self._options.cpus))
        trust = None if options.trust is None else str(Path(options.trust).resolve())
        options = msgspec.structs.replace(options, threads=threads, trust=trust)
        path = str(Path(bundle.path).resolve())
        # What does not concern the replicas is the same for all daemons.
        shared = msgspec.structs.replace(self._options, address="auto", start_seconds=1.0)
        return Setting(path, bundle.id, options, shared)

    def _start(self, setting: Setting) -> tuple[Any, int]:
        """Have the application run; return its handle, and the batch that its replicas gain by."""
        name = _name(setting.bundle_id)
        until = time.monotonic() + self._options.start_seconds
        there = serve.status().applications.get(name)
        if there is not None and there.status != "DEPLOY_FAILED":
            self._wait(setting, until)
            handle = serve.get_app_handle(name)
            running, batch = _described(handle, until)
            if running == setting:
                return handle, batch
        _deploy(setting)
        self._wait(setting, until)
        handle = serve.get_app_handle(name)
        _, batch = _described(handle, until)
        return handle, batch

    def _wait(self, setting: Setting, until: float) -> None:
        """Wait until an application runs."""
        name = _name(setting.bundle_id)
        while True:
            status = serve.status().applications.get(name)
            if status is None or status.status == "RUNNING":
                return
            if status.status == "DEPLOY_FAILED":
                texts = [each.message for each in status.deployments.values()]
                raise BundleError(
                    f"Ray's replicas cannot serve {setting.path}: {_reason(*texts, status.message)}"
                )
            if time.monotonic() >= until:
                raise OffloadError(
                    f"no replica of {setting.path} started in {self._options.start_seconds:g} s: "
                    f"has the Ray cluster {self._options.cpus:g} CPUs and "
                    f"{self._options.gpus:g} GPUs free? `ray status` says"
                )
            time.sleep(_LOOK)

    def _release(self, setting: Setting) -> None:
        """Let Serve end the replicas of a bundle that this daemon serves no longer."""
        with self._lock:
            self._opened[setting.bundle_id] -= 1
            if self._opened[setting.bundle_id] > 0:
                return
            # They end when no other daemon calls them either.
            most = setting.ray.most_replicas
            idle = msgspec.structs.replace(setting.ray, replicas=0, max_replicas=most)
            try:
                _deploy(msgspec.structs.replace(setting, ray=idle))
            except (RayError, RayServeException, RuntimeError) as error:
                logger.error("the replicas of %s stay: %s", setting.path, error)


class RayComputation:
    """Calls the replicas of one bundle's application.

    Parameters
    ----------
    bundle
        The bundle.
    handle
        Of the application.
    batch
        Samples in one run beyond which a replica gains nothing.
    release
        Called when the bundle is served no longer.
    """

    trouble = ""  # not known: calls are made again until their deadlines

    def __init__(
        self, bundle: Bundle, handle: Any, batch: int, release: Callable[[], None]
    ) -> None:
        self.bundle = bundle
        self.check = request_checker(bundle.manifest)
        self.batch = batch
        self._finish = handle.finish
        self._release = release
        self._usual = 0.0  # seconds of a call, of the last ones
        self._log = LogLimit(logger)

    def finish(self, jobs: Sequence[Job]) -> list[list[Done]]:
        """Answer jobs in one call, and call again if its replica dies."""
        started = time.monotonic()
        try:
            runs = self._call(jobs)
        except Exception as error:  # of the replica's own code, or of Ray itself
            return [[failed(job, error, started)] for job in jobs]
        now = time.monotonic()
        return [[_done(jobs[reply.position], reply, now) for reply in run] for run in runs]

    def close(self) -> None:
        """Let the replicas go; does not wait."""
        threading.Thread(target=self._release, name="scissionlite-ray-release", daemon=True).start()

    def _call(self, jobs: Sequence[Job]) -> list[list[Reply]]:
        payloads = [[as_array(payload) for payload in job.payloads] for job in jobs]
        last = max(job.expires for job in jobs)
        while (left := last - (begun := time.monotonic())) > 0:
            requests = [
                Request(
                    job.device_id, job.request_id, job.tensors, each, job.samples,
                    job.expires - begun,
                )
                for job, each in zip(jobs, payloads, strict=True)
            ]  # fmt: skip
            response = self._finish.remote(requests)
            # A node that loses its power does not say so: half of the time is for another one.
            patience = min(left, max(left / 2, _PATIENCE * self._usual))
            try:
                runs: list[list[Reply]] = response.result(timeout_s=patience)
            except TimeoutError:
                response.cancel()
                self._log.warning("slow", "", "a call to Ray's replicas took %.1f s", patience)
            except RayTaskError:
                raise
            except (RayError, RayServeException) as error:
                self._log.warning("retry", "", "a call is made again: %s", type(error).__name__)
                time.sleep(_PAUSE)
            else:
                self._usual += (time.monotonic() - begun - self._usual) / 8
                return runs
        return [[Reply(i, [], "", 0.0, 0.0, expired=True)] for i in range(len(jobs))]


def _check_reachable(address: str) -> None:
    """Raise an OSError or a ValueError unless something listens there; Ray waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError("an address is auto or HOST:PORT")
    socket.create_connection((host, int(port)), _REACH).close()


def _done(job: Job, reply: Reply, now: float) -> Done:
    reason = reply.reason or "the deadline passed before a replica of Ray answered"
    elsewhere = now - job.arrived - reply.decode - reply.run
    frames = [frame.data for frame in reply.frames]
    return Done(job, [*frames], reason, elsewhere, reply.decode, reply.run, reply.expired)


def _deploy(setting: Setting) -> None:
    """Have Serve make an application so; it replaces the replicas that are otherwise."""
    options = setting.ray
    deployment = serve.deployment(
        EdgeReplica,
        max_ongoing_requests=_ONGOING,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.replicas,
            "max_replicas": options.most_replicas,
            "target_ongoing_requests": options.target_ongoing,
            "upscale_delay_s": options.upscale_delay,
            "downscale_delay_s": options.downscale_delay,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 2.0,
        },
        max_constructor_retry_count=_CONSTRUCTED,
        max_surge_percent=_SURGE,
    )
    target = serve.RunTarget(
        deployment.bind(setting), name=_name(setting.bundle_id), route_prefix=None
    )
    serve.run_many([target], wait_for_applications_running=False)


def _described(handle: Any, until: float) -> tuple[Setting, int]:
    """Ask a replica what it runs."""
    while True:
        try:
            described: tuple[Setting, int] = handle.describe.remote().result(
                timeout_s=max(1.0, until - time.monotonic())
            )
        except (RayError, RayServeException, TimeoutError) as error:
            if time.monotonic() >= until:
                raise OffloadError(f"Ray's replicas do not answer: {error}") from error
            time.sleep(_LOOK)
        else:
            return described


def _name(bundle_id: str) -> str:
    return f"scissionlite-{bundle_id[:12]}"


def _reason(*texts: str) -> str:
    """The last line of a replica's traceback that says something."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no reason given"])[-1][:1000]
