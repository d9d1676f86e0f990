"""The demo: profile, slice, retrain, split and run over a constrained link, with a table.

``flow`` is the sequence of steps, and uses the public functions as a user does. ``comparison``
measures the ways to run the network, in turns; ``processes`` starts an edge daemon, the emulated
link of ``link_emulator`` and the device of ``device_process``, each a process. ``textures`` draws
the built-in data set, ``figure`` the result. Tests and benchmarks use the link emulator too.
"""
