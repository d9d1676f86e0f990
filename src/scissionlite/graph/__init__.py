"""Graph: a network captured as blocks, with the slicing points between them (needs torch).

    model + example -> capture -> Graph: blocks, slicing points, what crosses each

``capture`` traces a model with torch.fx or torch.export, and checks that the traced module answers
the same. ``graph`` makes a Graph of that module. ``analysis`` helps it: batch sizes, constants,
memory, multiplications. ``Graph.split`` gives the two slices of a slicing point. ``tensors``
describes tensors for profiles, bundles and the wire; only this file imports without torch.
"""
