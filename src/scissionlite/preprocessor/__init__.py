"""Preprocessor: Inserter, Trainer and Splitter (arXiv 2105.02019), from a plan to a bundle."""
