"""The device's side of the Offloader, and the client that only probes or profiles.

``device``         Device: what callers use; ``inputs`` and ``answers`` are its values
``answering``      Answering: the caller's thread, and the local fallback's; ``side`` computes
``streams``        FrameStream: the newest frames of a source; ``asynchronous`` for asyncio
``threads``        DeviceThreads: their end: closed, dropped, or forked; ``futures`` callbacks
``edges``          Edges: which edge a request goes to; ``alternatives`` who else answers it
``connection``     EdgeConnection: who leads, and a thread's life; ``backoff`` when it tries again
``credit``         Credit: how many requests may be unanswered
``loop``           DeviceLoop: the leader's steps; ``messages`` its frames, ``endings`` its ends
``link``           EdgeLink: one life of the link, from Hello to the end
``tensor_path``    TensorPath: whether requests arrive; ``link_meter`` how fast
``socket_pair``    SocketPair: PUSH and DEALER; ``diagnosis`` why they do not connect
``edge_client``    EdgeClient: probes and profiles, in the caller's thread
"""
