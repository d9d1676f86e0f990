"""Graph: a network captured as blocks, with the slicing points between them (needs torch).

    model + example -> capture -> Graph: blocks, slicing points, what crosses each

``capture`` asks ``tracing`` for one graph of the model (by torch.fx, or else by torch.export).
``mutation`` makes its in-place operations out of place. ``graph`` makes a Graph of it, with the
help of ``analysis``: batch sizes, constants, memory, multiplications. ``reference`` holds it to the
answers of the untouched model. ``Graph.split`` gives the two slices of a slicing point. ``tensors``
describes tensors for profiles, bundles and the wire; only this file imports without torch.
"""
