"""A feature table to a bundle: `python jobs/train_lstm.py --help`."""

import sys

from emotion_batch.__main__ import main

sys.exit(main(["train", *sys.argv[1:]]))
