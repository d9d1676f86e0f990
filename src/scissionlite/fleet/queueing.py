"""The queue of an edge machine, as the assignment sees it: requests that wait, by load. No torch.

Requests of many devices come one by one (Poisson, which the sum of many periodic devices is close
to), and each takes a worker for a known time. So an edge with one worker is the queue M/D/1, whose
length is that of M/M/1 halved (Pollaczek and Khinchine). With several workers it is about half of
M/M/c's (Erlang's formula C), and a little more by G. P. Cosmetatos, "Approximate Explicit Formulae
for the Average Queueing Time in the Processes (M/D/r) and (D/M/r)", INFOR 13, 1975.
"""

from __future__ import annotations

import math


def erlang_c(load: float, servers: int) -> float:
    """The share of requests that find every server busy, in a queue M/M/c.

    Parameters
    ----------
    load
        Requests per second times seconds of work for one: servers that are busy on average.
    servers
        How many there are; more than the load.
    """
    blocked = 1.0  # Erlang's formula B, server by server
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def waiting(load: float, servers: int) -> float:
    """Requests that wait on average, where each takes the same time (M/D/c).

    By Little's law these are the seconds that requests wait, in each second.
    """
    if load <= 0:
        return 0.0
    if load >= servers:
        return float("inf")
    share = load / servers
    more = (1 - share) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * share * servers)
    ratio = min(1.0, 0.5 * (1 + more))  # of M/D/c to M/M/c
    return ratio * erlang_c(load, servers) * load / (servers - load)


def waiting_slope(load: float, servers: int) -> float:
    """The derivative of :func:`waiting` by the load."""
    step = 1e-6 * servers
    return (waiting(load + step, servers) - waiting(max(0.0, load - step), servers)) / (
        load + step - max(0.0, load - step)
    )
