"""Comparisons of networks at one budget, with paired seeds: what the ablations, recipes and hosts share.

:func:`examples.compare.runner.compare` trains every network of a list with every seed and scores it;
:func:`examples.compare.tables.comparison_table` tabulates the scores and tests their differences for significance.
"""
