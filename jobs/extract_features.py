"""Recordings to a feature table: `python jobs/extract_features.py --help`."""

import sys

from emotion_batch.cli import main

sys.exit(main(["extract", *sys.argv[1:]]))
