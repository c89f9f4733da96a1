"""The demo and the archive that it makes.

`demo.demo` runs the whole pipeline, and `synthesis` makes recordings from formulas. Tests and benchmarks use `synthesis` as well. This
room may use the API, and knows nothing of the command line.
"""
