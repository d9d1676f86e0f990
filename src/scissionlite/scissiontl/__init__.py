"""ScissionTL: benchmarks a network, predicts the best slicing point (arXiv 2105.02019)."""
