"""Benchmarks: no part of the package and no part of the tests. Run them with the file named."""
