"""Extract features: recordings to a feature table.

Edit the settings and run `python jobs/extract_features.py`. Or give the words of `emotion-batch extract`, which replace
all settings: `python jobs/extract_features.py ARCHIVE TABLE --scheduler tcp://HOST:8786`; `--help` lists them.
"""

import emotion_batch
from emotion_batch.__main__ import job

with job("extract") as here:
    here.show(
        emotion_batch.extract(
            "recordings",  # a folder, a bucket prefix, a glob, or a list file
            "features",  # the feature table, a folder or a bucket prefix
            settings=emotion_batch.FeatureSettings(),  # the notebook's; VoicesSettings() are the other recipe's
            segments=None,  # the recipe's; emotion_batch.Segments.windows(6, 3) is a window of 6 s every 3 s
            scheduler=None,  # "tcp://HOST:8786" is a running Dask scheduler; None starts workers on this machine
            workers=None,  # of this machine; None starts one for each core
            watcher=here.watcher,
        )
    )
