"""A small Ray cluster on this machine: ``python -m ray_cluster CPUS [CPUS ...]``, a node for each.

It writes a line of JSON with the address, and obeys lines on its input, each with a line
of JSON as the answer: ``replicas NAME`` are the processes of an application, as a list of
number and node; ``kill-node NODE`` ends a node with its processes; ``status`` says how each
application fares; ``free RESOURCE`` is how much of it no replica has; ``delete NAME`` ends an
application; ``place BYTES`` is where a replica reads a payload of that size, as the name of the
mapped memory. It ends with its input. Each node has a GPU, which Ray only counts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

from scissionlite.offloader.edge.engines.ray_replica import Request, as_array

MEMORY = 100 << 20  # bytes of each node's object store
PATIENCE = 240  # seconds: a guard; Ray's own are 30 and 60, which a busy machine needs to start it
TRIES = 3
GUARDS = {
    "RAY_gcs_server_port_wait_time_s": PATIENCE,
    "RAY_agent_register_timeout_ms": 1000 * PATIENCE,
    "RAY_worker_register_timeout_seconds": PATIENCE,
}


def started() -> tuple[Cluster, list[Any]]:
    """A cluster and its nodes. One time-out of Ray, of 30 s, cannot be set: then it tries again."""
    for attempt in range(TRIES):
        cluster = Cluster()
        try:
            options = {"object_store_memory": MEMORY, "include_dashboard": False, "wait": False}
            options["num_gpus"] = 1
            nodes = [cluster.add_node(num_cpus=int(cpus), **options) for cpus in sys.argv[1:]]
            cluster.wait_for_nodes(PATIENCE)
        except Exception:  # Ray raises no narrower one
            if attempt == TRIES - 1:
                raise
            cluster.shutdown()
        else:
            return cluster, nodes
    raise AssertionError


def main() -> None:
    """Be the cluster."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints the state of a node that dies
    cluster, nodes = started()
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    print(json.dumps({"address": cluster.address}), file=answers)
    for line in sys.stdin:
        command, *arguments = line.split()
        answer: Any = None
        if command == "replicas":
            answer = replicas(*arguments)
        elif command == "kill-node":
            (node,) = (each for each in nodes if each.node_id == arguments[0])
            cluster.remove_node(node, allow_graceful=False)
        elif command == "status":
            answer = {name: app.status for name, app in serve.status().applications.items()}
        elif command == "free":
            answer = ray.available_resources().get(arguments[0], 0.0)
        elif command == "delete":
            serve.delete(*arguments)
        elif command == "place":
            answer = place(*map(int, arguments))
        print(json.dumps(answer), file=answers)
    ray.shutdown()
    cluster.shutdown()


class Reader:
    """Stands where a replica of a bundle does."""

    def finish(self, call: list[Request]) -> str:
        """Find the mapping that the payload lies in."""
        address = call[0].payloads[0].ctypes.data
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, *_, name = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if start <= address < end:
                return name
        return ""


def place(nbytes: int) -> str:
    """Call a replica as the daemon does, with a payload of so many bytes."""
    deployment = serve.deployment(Reader, ray_actor_options={"num_cpus": 0.1})
    handle = serve.run(deployment.bind(), name="reader", route_prefix=None)
    call = [Request(b"", 0, (), [as_array(bytes(nbytes))], 1, 1.0)]
    found: str = handle.finish.remote(call).result(timeout_s=PATIENCE)
    serve.delete("reader")
    return found


def replicas(application: str) -> list[tuple[int, str]]:
    """The process and the node of each replica that lives."""
    prefix = f"SERVE_REPLICA::{application}#"
    return [
        (each["Pid"], each["Address"]["NodeID"])
        for each in actors().values()
        if each["State"] == "ALIVE" and each["Name"].startswith(prefix)
    ]


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ |= {name: str(value) for name, value in GUARDS.items()}  # its processes read them
    main()
