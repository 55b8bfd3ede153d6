"""The parts of `benchmarks.soak`: the models, what is looked at, how it is judged, and the picture."""
