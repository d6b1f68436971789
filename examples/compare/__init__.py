"""The one runner behind the ablations, the recipes and the hosts: networks, seeds, one budget, statistics, tables.

:func:`examples.compare.runner.compare` trains every network of a list with every seed and scores it;
:func:`examples.compare.tables.comparison_table` says what the seeds make of the differences.
"""
