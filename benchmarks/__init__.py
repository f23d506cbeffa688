"""What nextreid costs, measured: ``python -m benchmarks --list``."""
