"""The work of one worker on one shard, and its protection from bad recordings.

A run sends `shard.Work` to its workers, and `job.Job` says what to read and which parts to make. Everything runs and is tested without
Dask. This room knows nothing of drivers, clusters, training or analysis.
"""
