"""Graph: a network captured as blocks, with the slicing points between them (needs torch).

    model + example -> capture -> Graph: blocks, slicing points, what crosses each

``capture`` traces a model, ``analysis`` finds what its nodes hold (batch size, constants, memory,
multiplications), and ``graph`` cuts it.
"""
