"""What things cost, each side by side with what it is measured against: ``python -m benchmarks --help``."""
