"""Benchmarks of nvmeof beside other servers; run them with tools/bench."""
