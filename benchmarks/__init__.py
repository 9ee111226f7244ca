"""What is measured, and how: `python -m benchmarks.throughput`, `python -m benchmarks.compare`."""
