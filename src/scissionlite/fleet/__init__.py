"""The fleet: many devices, several edge machines, and who cuts where, planned at once. No torch.

    inventory (TOML) -> Inventory -> options: the planner's plans, of each group and edge
                                       -> assignment: one integer program -> Assignment
    Assignment -> simulation: every request of every device -> Outcome

``inventory`` reads and checks the file. ``options`` asks :func:`scissionlite.plan` for every group
of devices and edge. ``assignment`` chooses with SciPy's solver, under the queueing model of
``queueing``. ``simulation`` plays the requests, with failures: ``sources`` are the devices,
``routes`` their ways to the edges, ``station`` the queues there.
"""
