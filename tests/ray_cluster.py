"""A small Ray cluster on this machine: ``python -m ray_cluster CPUS [CPUS ...]``, a node for each.

It writes a line of JSON with the address, and obeys lines on its input, each with a line
of JSON as the answer: ``replicas NAME`` are the processes of an application, as a list of
number and node; ``kill-node NODE`` ends a node with its processes; ``status`` says how each
application fares. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

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
    cluster, nodes = started()
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    print(json.dumps({"address": cluster.address}), flush=True)
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
        print(json.dumps(answer), flush=True)
    ray.shutdown()
    cluster.shutdown()


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
