"""Label an archive: recordings, or a feature table, to a label table.

Edit the settings and run `python jobs/label_archive.py`. Or give the words of `emotion-batch label`, which replace all
settings: `python jobs/label_archive.py ARCHIVE TABLE --model BUNDLE`; `--help` lists them.
"""

import emotion_batch
from emotion_batch.__main__ import job

with job("label") as here:
    here.show(
        emotion_batch.label(
            "recordings",  # a folder, a bucket prefix, a glob, a list file, or a feature table
            "labels",  # the label table, a folder or a bucket prefix
            model=None,  # the folder of a bundle; None is the one that ships
            segments=None,  # the model's; emotion_batch.Segments.windows(6, 3) is a window of 6 s every 3 s
            scheduler=None,  # "tcp://HOST:8786" is a running Dask scheduler; None starts workers on this machine
            workers=None,  # of this machine; None starts one for each core
            watcher=here.watcher,
        )
    )
