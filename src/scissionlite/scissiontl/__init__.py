"""ScissionTL: benchmarks a network and predicts the best slicing point (arXiv 2105.02019).

    Graph -> profiler -> Profile (JSON)  --+
    edge daemon -> probe -> Link (CSV)   --+-> planner -> list of Plan, best first -> report

``profiler`` measures on this host: ``timing`` blocks and slices, ``codecs`` packing and images,
``offload_timing`` the Offloader, ``leakage`` the privacy figure. ``remote_profile`` has an edge
daemon do the same. ``planner`` predicts with the cost model of ``cost`` (and ``tiers`` for a third
machine) and drops the plans that break a limit of ``constraints``. ``report`` writes a page with
the figures of ``figures``. ``profile``, ``link``, ``plans``, ``constraints``, ``cost`` and
``planner`` import without torch.
"""
