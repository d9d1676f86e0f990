"""Preprocessor: Inserter, Trainer and Splitter (paper section IV), from a plan to a bundle."""

from scissionlite.preprocessor.pipeline import prepare

__all__ = ["prepare"]
