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


def main() -> None:
    """Be the cluster."""
    cluster = Cluster()
    nodes = [
        cluster.add_node(num_cpus=int(cpus), object_store_memory=MEMORY, include_dashboard=False)
        for cpus in sys.argv[1:]
    ]
    cluster.wait_for_nodes()
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
    main()
