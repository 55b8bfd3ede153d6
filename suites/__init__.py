"""Suites that others wrote, run against a real Keepwarm: `make suites`."""
