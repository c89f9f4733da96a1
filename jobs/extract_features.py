"""Recordings to a feature table: `python jobs/extract_features.py --help`."""

import sys

from emotion_batch.__main__ import main

sys.exit(main(["extract", *sys.argv[1:]]))
