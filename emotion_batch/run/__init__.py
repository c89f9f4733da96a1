"""The driver's side of a run: from a manifest to finished parts, on a Dask cluster.

`driver.Run` is a run, `submit` a run that goes on without its driver, `record` what is kept of it, `plan` what is told before. Only
the modules `dask_*` import Dask, and they know nothing about audio. This room knows nothing of training and analysis.
"""
