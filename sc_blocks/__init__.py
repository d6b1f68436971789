"""Attention blocks from the MREN super-resolution network, for use in your own networks.

Every block maps NCHW feature maps to NCHW feature maps and takes its widths first, its options by keyword. The package
depends on torch and einops only.
"""

import typing as _typing

from sc_blocks.communication import (
    AdaptedCommunication,
    FixedCommunication,
    GatedCommunication,
    LearnableCommunication,
    NoCommunication,
)
from sc_blocks.dracb import DRACB, DRACBChain
from sc_blocks.local import to_global, to_local
from sc_blocks.mreb import MREB
from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILB, WSILBV

__all__ = [
    "DRACB",
    "MREB",
    "RBWA",
    "SCACB",
    "WSILB",
    "WSILBV",
    "AdaptedCommunication",
    "DRACBChain",
    "FixedCommunication",
    "GatedCommunication",
    "LearnableCommunication",
    "NoCommunication",
    "to_global",
    "to_local",
]

__version__ = "0.2.0"


if _typing.TYPE_CHECKING:  # for type checkers, a module with __getattr__ would have every name
    from sc_blocks.communication import LinearCommunication as LinearCommunication
else:

    def __getattr__(name: str) -> type[FixedCommunication]:
        if name != "LinearCommunication":  # its name in 0.1.0
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import warnings  # here, so that it is not an attribute of the package

        warnings.warn("LinearCommunication has been renamed to FixedCommunication.", DeprecationWarning, stacklevel=2)
        return FixedCommunication
