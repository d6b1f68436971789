r"""Exact rewrites of trained blocks for inference.

Only this package reorders the arithmetic of the blocks. :func:`fold` copies a network, and in the copy

- an :class:`~sc_blocks.RBWA` with a factor of 2, 3, 4 or 5 convolves before it upsamples, which at a factor of 2 takes
  a quarter of the multiplications;
- the last convolution of an RBWA and a 3x3 convolution with few output channels directly behind it in a
  ``torch.nn.Sequential`` are merged into one 5x5 convolution;
- the two weighing convolutions of an :class:`~sc_blocks.SCACB` with the paper's exchange, which read the same map, are
  merged into one;
- on a CPU, outside of compiled and exported graphs, RBWA, :class:`~sc_blocks.SCACB` and the statistics of
  :class:`~sc_blocks.WSILBV` process large maps in strips of rows, which fit into the caches.

Nothing else is rewritten, and on a GPU the copy computes as before. :func:`fold_report` lists what is rewritten, what
is left, and why.
"""

from sc_blocks.deploy.folding import FoldReport, fold, fold_report

__all__ = ["FoldReport", "fold", "fold_report"]
