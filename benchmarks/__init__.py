"""Measurements of Keepwarm on this machine: `python -m benchmarks` lists them, `make bench` runs them.

Two things are compared only within one run, in alternation, and reported as a ratio or a difference with its spread:
absolute figures of different days or machines say little.
"""
