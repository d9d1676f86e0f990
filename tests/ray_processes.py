"""A Ray cluster and daemons on it, as processes: who uses them need not import Ray."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from processes import Process

from scissionlite.bundle import Bundle


class RayCluster:
    """The process ``ray_cluster``, with a node for each number of CPUs."""

    def __init__(self, *cpus: int) -> None:
        self._process = Process("ray_cluster", *map(str, cpus))
        self.address: str = self._process.read_json()["address"]

    def ask(self, *command: str) -> Any:
        """Have it obey a command; return its answer."""
        self._process.write_line(" ".join(command))
        return json.loads(self._process.read_line())

    def replicas(self, bundle: Bundle) -> dict[int, str]:
        """The processes of a bundle's replicas that live, and the node of each."""
        return dict(self.ask("replicas", application(bundle)))

    def kill_replica(self, bundle: Bundle) -> int:
        """Kill one of a bundle's replicas, which has calls if there is traffic; return which."""
        pid = min(self.replicas(bundle))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        return pid

    def end_replicas(self, bundle: Bundle) -> None:
        """End a bundle's application, as an operator would."""
        self.ask("delete", application(bundle))

    def close(self) -> None:
        """End it, with all that runs there."""
        self._process.close_input()
        self._process.wait()
        self._process.kill()


def application(bundle: Bundle) -> str:
    """The name of a bundle's application."""
    return f"scissionlite-{bundle.id[:12]}"


class Front(Process):
    """``scissionlite serve --engine ray``, ready."""

    def __init__(self, cluster: RayCluster, *arguments: str) -> None:
        engine = ["--engine", "ray", "--address", cluster.address, "--cpus", "0.1"]
        engine += ["--start-seconds", "300"]  # a guard, for machines that are busy
        local = ("--bind", "tcp://127.0.0.1:*", "--threads", "1", "--json")
        super().__init__("scissionlite", "serve", *arguments, *local, *engine)
        ready = self.read_json()
        self.endpoint: str = ready["endpoint"]
        self.control: str = ready["control_endpoint"]


def joined(fronts: Sequence[Front]) -> tuple[str, str]:
    """The endpoints of several, as ``many_devices`` takes them."""
    endpoints, controls = zip(*((each.endpoint, each.control) for each in fronts), strict=True)
    return ",".join(endpoints), ",".join(controls)
