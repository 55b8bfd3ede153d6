"""Observe the fleet, plan the placement, act on it, and pick up what fell. `plan` is pure; `tick` is its one caller."""
