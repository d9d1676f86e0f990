"""ScissionTL: benchmarks a network, and predicts the best slicing point (paper section III)."""
