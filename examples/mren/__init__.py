"""MREN, the network of the paper, built from the blocks of ``sc_blocks``: trained, scored and put to use."""

from importlib.util import find_spec

if find_spec("safetensors") is None:  # or the first of many missing packages would be named, and then the next
    raise ModuleNotFoundError(
        'examples.mren needs packages that sc_blocks does not: python -m pip install -e ".[examples]" installs them.',
        name="safetensors",
    )
