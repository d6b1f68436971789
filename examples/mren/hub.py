"""MREN for the Hugging Face Hub and local folders: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

The folder's ``model.safetensors`` is an ordinary weight file, which ``--weights`` of the commands accepts, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import PyTorchModelHubMixin, constants

from examples.mren.model import COMMUNICATIONS, MREN, Chain, Scale, save_weights
from examples.mren.weightfile import check_arguments
from sc_blocks.dracb import Relay
from sc_blocks.scacb import Exchange, Parts


def _as_json(value: Any) -> Any:
    """An argument as a configuration file returns it: NumPy numbers as Python numbers, pairs as lists."""
    return np.asarray(value).tolist()


class HubMREN(
    MREN,
    PyTorchModelHubMixin,
    coders=dict.fromkeys((np.generic, tuple, list), (_as_json, _as_json)),  # the mixin drops what JSON cannot hold
    library_name="sc_blocks",
    pipeline_tag="image-to-image",
    tags=["super-resolution"],
):
    """MREN with the methods of :class:`huggingface_hub.PyTorchModelHubMixin`.

    The constructor is that of :class:`~examples.mren.model.MREN`, restricted to what a configuration file can hold: no
    custom channels, and neither ``device`` nor ``dtype``; call ``.to()`` instead.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is of another type.

    Example:
        >>> import tempfile
        >>> from contextlib import redirect_stdout
        >>> net = HubMREN(2, channels=12, num_blocks=1, exchange=None)
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):  # the mixin prints
        ...     _ = net.save_pretrained(folder)
        ...     again = HubMREN.from_pretrained(folder)
        >>> again.scale, again.body[0].stages[0].exchange, again.training
        (2, None, False)
    """

    def __init__(
        self,
        scale: Scale,
        *,
        channels: int = 60,
        num_blocks: int = 6,
        reconstruct_channels: tuple[int, int] | None = None,
        parts: Parts = "both",
        exchange: Exchange | None = "outputs",
        residual: bool = True,
        communication: float | Literal["learnable", "gated"] | None = 0.2,
        chain: Chain = "block",
        gate: bool = True,
        relay: Relay = "raw",
    ) -> None:
        # The mixin would silently save the default for anything else.
        if communication is not None and not isinstance(communication, (int, float, np.number, str)):
            raise TypeError(
                f"HubMREN: communication must be a number, {', '.join(map(repr, COMMUNICATIONS))} or None, which a "
                f"configuration file can hold, got {communication!r}; MREN takes modules and factories."
            )
        super().__init__(
            scale,
            channels=channels,
            num_blocks=num_blocks,
            reconstruct_channels=reconstruct_channels,
            parts=parts,
            exchange=exchange,
            residual=residual,
            communication=communication,
            chain=chain,
            gate=gate,
            relay=relay,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        # Our own writer: atomic, and with the arguments in the metadata, so that load_mren reads the file, too.
        save_weights(self, save_directory / constants.SAFETENSORS_SINGLE_FILE, dict(self._hub_mixin_config))

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, strict: bool = True, **given: Any
    ) -> HubMREN:
        # The mixin fills in `config` from config.json because of this parameter. It lets arguments override the file,
        # ignores unknown entries, and by default loads only what fits: each would silently build another network than
        # the saved one.
        if config is None:
            raise ValueError(f"{model_id}: has no {constants.CONFIG_NAME}; was it written by HubMREN.save_pretrained?")
        accepted = cls._hub_mixin_init_parameters.keys() - {"self"}
        unknown = config.keys() - accepted
        if unknown:
            raise ValueError(
                f"{model_id}: {constants.CONFIG_NAME} holds {', '.join(sorted(unknown))}; HubMREN takes "
                f"{', '.join(sorted(accepted))}. Was it written by another version?"
            )
        try:
            check_arguments(config)
        except ValueError as error:
            raise ValueError(f"{model_id}: {constants.CONFIG_NAME}: {error}.") from error
        for name in accepted & given.keys() & config.keys():
            if _as_json(given[name]) != config[name]:
                raise ValueError(
                    f"{model_id}: was saved with {name}={config[name]!r}, asked for {name}={given[name]!r}."
                )
        try:
            net = super()._from_pretrained(model_id=model_id, strict=strict, **given)
        except RuntimeError as error:
            raise ValueError(f"{model_id}: its weights do not fit its arguments, {config}: {error}") from error
        return net.eval()  # not all releases of the mixin do this
