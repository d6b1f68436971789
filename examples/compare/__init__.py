"""Comparisons of networks at equal budgets with paired seeds, shared by the ablations, recipes and hosts.

:func:`examples.compare.runner.compare` trains every network of a list with every seed and scores it;
:func:`examples.compare.tables.comparison_table` tabulates the scores and tests their differences for significance.
"""
