"""From bytes to samples to numbers.

`audio.opened` decodes any supported recording, `recipes` computes the features of a recipe. This room works on bytes and arrays: it knows
nothing of archives, tables, models or Dask, and imports no other room.
"""
