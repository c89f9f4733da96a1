"""From feature tables to bundles, and what a bundle is worth.

`train`, `evaluate` and `import_h5` are the commands. Only `networks` imports TensorFlow, and only when a function is called, so workers never
load it. This room knows nothing of Dask, runs or analysis.
"""
