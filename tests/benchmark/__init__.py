"""Benchmarks: vitlab and its peers, measured in one process in interleaved rounds."""
