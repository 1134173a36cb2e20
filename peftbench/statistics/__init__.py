"""Statistics of finished runs: pure functions on arrays and frames that know no files.

Scores come as long frames with the columns `label`, `dataset`, `seed` and `score`, one row a run,
never as bare arrays: swapped axes give numbers that look right.
"""
