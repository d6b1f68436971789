"""No rewrite changes a result: outputs and gradients are the committed ones."""

from __future__ import annotations

import json

import pytest
import torch

from tests.blocks import CASES, Case, each_case
from tests.golden import FILE, compute

GOLDEN: dict[str, dict[str, list[float]]] = json.loads(FILE.read_text())


@each_case
def test_results_are_the_committed_ones(case: Case) -> None:
    expected, actual = GOLDEN[case.name], compute(case)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            torch.tensor(actual[name], dtype=torch.float64),
            torch.tensor(values, dtype=torch.float64),
            rtol=1e-10,
            atol=1e-11,  # sums of a hundred and more terms of size 1 may cancel
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_every_number_is_asked_for() -> None:
    assert GOLDEN.keys() == {case.name for case in CASES}


@pytest.mark.parametrize("factor", [1 + 1e-9, 1 - 1e-9])
def test_a_change_of_a_billionth_shows(factor: float) -> None:
    # The tolerance above lets rounding pass, and little else.
    case = CASES[0]
    changed = compute(Case(case.name, lambda **options: scaled(case.build(perturbed=False, **options), factor), 12, 12))
    assert any(
        abs(one - other) > 1e-10 * abs(other) + 1e-11
        for one, other in zip(changed["output"], GOLDEN[case.name]["output"], strict=True)
    )


def scaled(module: torch.nn.Module, factor: float) -> torch.nn.Module:
    module.fuse.register_forward_hook(lambda _, __, out: out * factor)
    return module
