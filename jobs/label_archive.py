"""Recordings, or a feature table, to a label table: `python jobs/label_archive.py --help`."""

import sys

from emotion_batch.__main__ import main

sys.exit(main(["label", *sys.argv[1:]]))
