"""Seeds, signals, and how hard Hypothesis tries."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=25, print_blob=True)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


@pytest.fixture(autouse=True, scope="session")
def threads() -> int:
    # Several processes of pytest-xdist share the cores; more threads than cores slow all of them down.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = max(1, torch.get_num_threads() // processes)
    torch.set_num_threads(number)
    return number


@pytest.fixture(autouse=True)
def as_many_threads(threads: int) -> None:
    # Also after a command that was given --threads.
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def signals() -> None:
    # Under nohup, and in the background of a shell, a process and all that it starts ignore these.
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
