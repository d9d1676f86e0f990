"""The edge's side of the Offloader.

``server``     EdgeServer: what users make, start and close
``threads``    EdgeThreads: the threads, which take turns at leading and at working
``engines``    where the slices run; ``side``: EdgeSide, the computation of a bundle
``loop``       EdgeLoop: the leader's steps, and its lock, under which the modules below are used
``admission``  Admission: which devices take part; ``served``: the bundles, of which each has one
``sockets``    EdgeSockets: PULL and ROUTER
``connections``  Connections: what each connection holds, and its end; ``bounds``: how much
``floods``     Floods: connections that send too many messages are muted
``requests``   Requests: what becomes of a device's requests
``schedule``   Schedule: devices, Jobs in turns; ``batching``: those run together; ``results``
``services``   EdgeServices: answers to edge clients; ``profiling``: a profiler's process
``metrics``    Metrics: the record of what the daemon does; any thread reads it
``page_server``  PageServer: ``status``, ``history``, ``prometheus`` by HTTP, in a thread of its own
"""
