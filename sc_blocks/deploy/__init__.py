r"""Exact rewrites of trained blocks for inference.

Only this package reorders the arithmetic of the blocks. :func:`fold` copies a network, and in the copy

- an :class:`~sc_blocks.RBWA` with a factor of 2, 3, 4 or 5 convolves before it upsamples, which at 2 takes a quarter of
  the multiplications;
- an RBWA and the 3x3 convolution of few channels directly behind it in a ``torch.nn.Sequential`` share their last
  convolution, of 5x5;
- the two weighing convolutions of an :class:`~sc_blocks.SCACB` with the paper's exchange, which read the same map, are
  one;
- on a CPU, outside of compiled and exported graphs, RBWA, :class:`~sc_blocks.SCACB` and the statistics of
  :class:`~sc_blocks.WSILBV` take large maps in strips of rows, which stay in its caches.

Nothing else is rewritten, and on a GPU nothing is. :func:`fold_report` lists what is rewritten, what is left, and why.
"""

from sc_blocks.deploy.folding import FoldReport, fold, fold_report

__all__ = ["FoldReport", "fold", "fold_report"]
