"""Preprocessor: Inserter, Trainer and Splitter (arXiv 2105.02019), from a plan to a bundle."""

from scissionlite.preprocessor.pipeline import prepare

__all__ = ["prepare"]
