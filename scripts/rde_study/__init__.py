"""The study behind docs/rde_benchmark.md: victims, attacks on them, detectors, and their combination."""
