"""MREN, the network of the paper, built from the blocks of ``sc_blocks``, and commands to train and use it."""

from importlib.util import find_spec

if find_spec("safetensors") is None:  # otherwise, missing packages would be reported one after the other
    raise ModuleNotFoundError(
        'examples.mren needs packages that sc_blocks does not: python -m pip install -e ".[examples]" installs them.',
        name="safetensors",
    )
