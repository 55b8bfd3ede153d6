"""The parts of `benchmarks.swap`: what is asked, of whom, and what it took."""
