"""A trained model at rest and in use: bundles, their safety check, prediction, confidence and domain.

`predict.label_rows` makes labels of feature rows. This room never imports TensorFlow and knows nothing of shards or runs.
"""
