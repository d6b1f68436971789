"""Weight files: ``.safetensors`` whose metadata holds the constructor's arguments, as JSON.

Files are not trusted. Nothing in them is executed; their arguments are checked against known names, types and ranges,
and against the names, shapes and types of their tensors, before memory of the claimed size is allocated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from examples.mren.files import atomic_write, check_regular
from examples.mren.messages import is_out_of_memory, one_line

KEY = "mren"  # in the metadata
_MAX_TEXT = 10_000  # of the arguments
_FLOATS = ("F16", "BF16", "F32", "F64")


def _is_int(value: object, minimum: int, maximum: int) -> bool:
    return type(value) is int and minimum <= value <= maximum


def is_number(value: object, minimum: float = -sys.float_info.max, maximum: float = sys.float_info.max) -> bool:
    """Whether a value from JSON is a number in a range; by default, that of finite floats."""
    return type(value) in (int, float) and minimum <= value <= maximum  # type: ignore[operator]


def _is_pair_of_widths(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_int(width, 1, 1024) for width in value)


# Valid values of each argument in a file, in words and as a check. The limits are far above any trained network.
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "scale": ("one of 2, 3, 4", lambda value: _is_int(value, 2, 4)),
    "channels": ("a whole number from 1 to 1024", lambda value: _is_int(value, 1, 1024)),
    "num_blocks": ("a whole number from 1 to 256", lambda value: _is_int(value, 1, 256)),
    "parts": ("text", lambda value: isinstance(value, str)),
    "exchange": ("text or null", lambda value: value is None or isinstance(value, str)),
    "residual": ("true or false", lambda value: isinstance(value, bool)),
    "communication": (
        "a number, text or null",
        lambda value: value is None or isinstance(value, str) or is_number(value),
    ),
    "chain": ("text", lambda value: isinstance(value, str)),
    "gate": ("true or false", lambda value: isinstance(value, bool)),
    "relay": ("text", lambda value: isinstance(value, str)),
    "reconstruct_channels": (
        "null or a list of two whole numbers from 1 to 1024",
        lambda value: value is None or _is_pair_of_widths(value),
    ),
}


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse the constructor's arguments from JSON, checking their names, types and ranges.

    Raises:
        ValueError: If they are invalid; the message says why.

    Example:
        >>> parse_arguments('{"scale": 4, "channels": 60}')
        {'scale': 4, 'channels': 60}
    """
    if len(text) > _MAX_TEXT:
        raise ValueError(f"its arguments are {len(text)} characters long, more than any network needs")
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its arguments are not a JSON object ({error})") from error
    check_arguments(arguments)
    return arguments


def check_arguments(arguments: object) -> None:
    """Check that these are valid arguments of MREN in the form that a file can hold.

    Raises:
        ValueError: If the scale is missing, or an argument is unknown or of another type or range.
    """
    if not isinstance(arguments, dict):
        raise ValueError(f"its JSON must hold arguments by name, got {_quoted(arguments)}")
    for name, value in arguments.items():
        if name not in _ARGUMENTS:
            raise ValueError(f"unexpected keyword argument {_quoted(name)}; MREN takes {', '.join(_ARGUMENTS)}")
        wanted, is_valid = _ARGUMENTS[name]
        if not is_valid(value):
            raise ValueError(f"{name} must be {wanted}; got {_quoted(value)}")
    if "scale" not in arguments:
        raise ValueError("its arguments have no scale")


def read_network(file: str | Path, build: Callable[..., nn.Module]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the constructor's arguments and the tensors of a weight file, checking that they fit each other.

    Args:
        file: The file.
        build: Called with the arguments, and ``device="meta"``, to build the network that the tensors must fit.

    Raises:
        ValueError: If the file is unreadable, holds no valid arguments, or its tensors are not those of the network;
            the message names the file.
        OSError: If it does not exist.
    """
    file = Path(file)
    check_regular(file)
    try:
        opened = safe_open(file, framework="pt")
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        reason = one_line(error)[:200]
        raise ValueError(
            f"{file}: not a readable .safetensors file ({reason}); copy it again, or convert a .pth or .ckpt with "
            "save_weights, as docs/how-to/safe-weights.md shows."
        ) from error
    with opened:
        metadata = opened.metadata() or {}
        if KEY not in metadata:
            raise ValueError(
                f"{file}: holds no constructor arguments of MREN, as files of examples.mren.train do; add them with "
                "save_weights, as docs/how-to/safe-weights.md shows."
            )
        try:
            arguments = parse_arguments(metadata[KEY])
        except ValueError as error:
            raise ValueError(f"{file}: {error}; was it written by examples.mren.train?") from error
        try:
            # On meta: tensors are allocated only if the file holds them.
            expected = build(**arguments, device="meta").state_dict()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: no network can be built from its arguments ({error})") from error
        mismatch = f"{file}: its weights do not fit its constructor arguments, {_quoted(arguments)}"
        return arguments, _read_tensors(opened, expected, file, mismatch)


def _read_tensors(opened: Any, expected: Mapping[str, Tensor], file: Path, mismatch: str) -> dict[str, Tensor]:
    stored_names = {unwrapped_name(name): name for name in opened.keys()}  # noqa: SIM118 (no dict)
    missing, unknown = expected.keys() - stored_names.keys(), stored_names.keys() - expected.keys()
    if missing or unknown:
        found = [f"{verb} {_some(names)}" for verb, names in (("lacks", missing), ("has", unknown)) if names]
        raise ValueError(f"{mismatch}: it {' and '.join(found)}.")
    for name, stored in stored_names.items():
        about = opened.get_slice(stored)
        shape, kind = tuple(about.get_shape()), about.get_dtype()
        if shape != tuple(expected[name].shape):
            raise ValueError(f"{mismatch}: {name} is {shape}, not {tuple(expected[name].shape)}.")
        if kind not in _FLOATS:
            raise ValueError(f"{file}: {name} is of type {one_line(kind)[:20]}; save it as floating-point.")
    state: dict[str, Tensor] = {}
    for name, stored in stored_names.items():
        state[name] = opened.get_tensor(stored)
        if not state[name].isfinite().all():
            raise ValueError(f"{file}: {name} holds NaN or infinite values; take earlier ones.")
    return state


def write_network(net: nn.Module, file: str | Path, config: Mapping[str, Any], *, degrade: str | None = None) -> None:
    """Write the file that :func:`read_network` reads, atomically, without checking that ``config`` fits the network.

    The file is the same if the network is compiled or wrapped for several processes. ``degrade`` is for its readers.
    """
    state = {unwrapped_name(name): tensor.float() for name, tensor in net.state_dict().items()}
    about = {} if degrade is None else {"degrade": degrade}
    write_tensors(file, state, {"format": "pt", KEY: json.dumps(dict(config)), **about})


def write_tensors(file: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name to a ``.safetensors`` file, atomically and with the usual permissions.

    Raises:
        OSError: If the file cannot be written.
    """
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(Path(file)) as scratch:
        # Not save_file: it sets its own permissions, and its errors are not OSErrors.
        scratch.write_bytes(save(values, metadata=None if metadata is None else dict(metadata)))


def unwrapped_name(name: str) -> str:
    """The name of a parameter without the prefixes of ``torch.compile`` and ``DistributedDataParallel``."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _quoted(value: object) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _some(names: set[str]) -> str:
    """The first name, truncated, and how many more there are; a file can hold any number of any length."""
    first = _quoted(min(names))[:80]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
