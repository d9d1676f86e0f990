"""Engines: where the edge daemon's slices run. The rest of the daemon is the same for all.

``engine``     Engine, which opens bundles; Computation, which finishes Jobs of one: the interface
``local``      LocalEngine: in the daemon's own threads; the default
``relay``      RelayEngine: the middle of three tiers, which is a device of the next edge
``ray``        RayEngine: in replicas of Ray Serve (``ray_replica``); ``ray_options``: how many
``triton``     TritonEngine: in a Triton server

A worker of :mod:`..threads` calls Computation.finish, which waits for the answers; so an engine
that has many machines has many workers, which wait.
"""
