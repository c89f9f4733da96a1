"""Train the LSTM: a feature table to a bundle.

Edit the settings and run `python jobs/train_lstm.py`. Or give the words of `emotion-batch train`, which replace all
settings: `python jobs/train_lstm.py TABLE BUNDLE --epochs 100`; `--help` lists them.
"""

import emotion_batch
from emotion_batch.__main__ import job

BUNDLE = "bundle"

with job("train") as here:
    here.show(
        emotion_batch.train(
            "features",  # the feature table
            BUNDLE,  # a new folder
            settings=emotion_batch.TrainingSettings(
                labels="tess",  # where labels are from: tess, ravdess, folder, regex:PATTERN or table:FILE
                epochs=None,  # the recipe's
                seed=0,
            ),
            watcher=here.watcher,
        ),
        BUNDLE,
    )
