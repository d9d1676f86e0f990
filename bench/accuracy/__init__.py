"""Accuracy of split networks: the experiments behind docs/accuracy.md.

    python -m bench.accuracy networks lite0 resnet18 segmentation    # train the uncut networks
    python -m bench.accuracy jpeg lite0 imagenet                     # uncut networks on JPEGs
    python -m bench.accuracy run lite0 --cut blocks.1 --transfer pool=2,dtype=int8 --seeds 0 1 2
    python -m bench.accuracy run lite0 --cut input --keep --transfer ...   # keeps the bundle
    python -m bench.accuracy table                                   # the tables and the figures

All read ``../shared/data`` and write below build/accuracy (``--data`` and ``--out``). Finished work
is not repeated.
"""
