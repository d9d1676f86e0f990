"""Benchmarks. They are no part of the package or of the tests; name the file to run one."""
