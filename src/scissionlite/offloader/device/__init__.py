"""The device's side of the Offloader, and the client that only probes or profiles.

``device``       Device: the caller's thread, and the local fallback's
``threads``      DeviceThreads: a device's threads and their end: closed, dropped, or forked
``futures``      AnswerFuture, CallbackThread: answers, and the callbacks of users
``side``         DeviceSide, LocalSide: the computation, in the caller's or the fallback's thread
``inputs``       a caller's input checked; outputs as the model returns them
``connection``   EdgeConnection: starts and ends the I/O thread, hands it requests
``credit``       Credit: the lock between callers and the I/O thread
``loop``         DeviceLoop: the I/O thread's steps; every request and reply passes it
``messages``     Request -> frames, frames -> Reply
``link``         EdgeLink: one life of the link, from Hello to the end
``socket_pair``  SocketPair: PUSH and DEALER, for EdgeLink and EdgeClient
``diagnosis``    why no connection can be made, as the system says it
``edge_client``  EdgeClient: probes and profiles, in the caller's thread
"""
