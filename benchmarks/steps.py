"""Run training steps of one checkout on request, so that old and new code are timed in turn in one run.

:mod:`benchmarks.suites` starts one process for each candidate, by the path of this file and with the packages of a
checkout on ``PYTHONPATH``. The process imports nothing of ``benchmarks``, which that checkout need not have. It answers
on standard output in lines of JSON: first its package and loss, then the seconds of a step for each line on standard
input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """Settings of a training step."""

    form: str
    """``"eager"``, ``"channels_last"``, ``"compiled"`` or several, separated by ``", "``."""
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 4
    """Patches per step."""
    patch_size: int = 24
    """Side of the low-resolution patches."""
    num_blocks: int = 6
    """Depth of MREN."""


class Worker:
    """Handle of the process that runs the steps.

    Args:
        checkout: Folder whose ``sc_blocks`` and ``examples`` are timed.
        request: Settings of the step.

    Raises:
        RuntimeError: If the process fails before its first step; the message holds its last line.
    """

    def __init__(self, checkout: Path, request: Request) -> None:
        # Not a pipe, which would fill up while nobody reads it; open as long as the process runs.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), json.dumps(asdict(request))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": str(request.threads)},
        )
        try:
            first = self._answer()
            if Path(first["package"]).resolve() != (checkout / "sc_blocks").resolve():
                raise RuntimeError(f"the steps of {checkout.name} would have run another sc_blocks.")
        except BaseException:  # including a timeout
            self.process.kill()
            self.close()
            raise
        self.loss: float = first["loss"]

    def step(self) -> float:
        """Run one training step and return its seconds."""
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.errors.close()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            errors = self.errors.read().strip().splitlines()
            raise RuntimeError((errors or ["the process ended without a message"])[-1])
        return json.loads(line)


def own_optimizer(net: Any, lr: float) -> Any:
    """Return the optimizer of the checkout's own training, or Adam if it has no function for it."""
    for name in ("examples.mren.training.recipes", "examples.mren.recipes"):  # the second before 0.2.0
        try:
            return import_module(name).make_optimizer(net, lr)
        except (ImportError, AttributeError):
            continue
    from torch.optim import Adam

    return Adam(net.parameters(), lr=lr)


def main(request: Request) -> None:
    """Answer requests in the worker process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers and libraries print to standard output, too
    sys.path.pop(0)  # this file's folder, which does not belong to the checkout

    import torch
    import torch.nn.functional as F

    import sc_blocks
    from examples.mren.model import MREN

    torch.set_num_threads(request.threads)
    torch.manual_seed(0)
    device, number, side = (torch.device(request.device), request.batch_size, request.patch_size)
    x = torch.rand(number, 3, side, side, device=device)
    y = torch.rand(number, 3, 4 * side, 4 * side, device=device)
    net = MREN(4, num_blocks=request.num_blocks).to(device)
    if "channels_last" in request.form:
        net = net.to(memory_format=torch.channels_last)
        x, y = (tensor.to(memory_format=torch.channels_last) for tensor in (x, y))
    optimizer = own_optimizer(net, 5e-4)
    call = torch.compile(net, fullgraph=True, dynamic=False) if "compiled" in request.form else net

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.l1_loss(call(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    loss = step().item()
    step()
    answer(package=str(Path(sc_blocks.__file__).parent), loss=loss)
    for _ in sys.stdin:
        start = time.perf_counter()
        step().item()  # waits for the device
        answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main(Request(**json.loads(sys.argv[1])))
