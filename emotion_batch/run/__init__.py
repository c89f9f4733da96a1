"""The driver's side of a run: from a manifest to finished parts, on a Dask cluster.

`driver.Run` is a run, `submit` leaves a run to the cluster, `record` keeps its results, and `plan` estimates it before. Only
the modules `dask_*` import Dask, and they know nothing about audio. This room knows nothing of training and analysis.
"""
