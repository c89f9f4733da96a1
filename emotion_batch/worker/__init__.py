"""What one worker does with one shard, and how it stays alive over bad recordings.

`shard.Work` is what travels to a worker, and `job.Job` says what it reads and which parts it makes. All of it runs and is tested without Dask. This room
knows nothing of drivers, clusters, training or analysis.
"""
