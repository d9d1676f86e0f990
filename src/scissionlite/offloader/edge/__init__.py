"""The edge's side of the Offloader.

``server``     EdgeServer: what users make, start and close
``threads``    EdgeThreads: the I/O thread and the worker, from start to end
``side``       EdgeSide: the computation, in the worker's thread
``loop``       EdgeLoop: the I/O thread's steps; the modules below run in that thread only
``sockets``    EdgeSockets: PULL and ROUTER
``connections``  Connections: what each connection holds, and its end; ``bounds``: how much
``frames``     FrameReader: messages of a socket, however many frames they have
``schedule``   Schedule: devices, and their Jobs in turns
``services``   EdgeServices: answers to edge clients
``profiling``  Profiling: a profiler's process
``metrics``    Metrics: the record of what the daemon does
"""
