"""The repr of a process is the call that makes it, if its arguments are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sdesamplers as sds

TEXTS = {
    "EDM(sigma_min=0.002, sigma_max=80)": sds.EDM,
    "VE(sigma_min=0.01, sigma_max=50)": sds.VE,
    "VP(beta_min=0.1, beta_max=20)": sds.VP,
    "VP(beta_min=0.1, beta_max=20, T=2.5)": lambda: sds.VP(T=2.5),
    "SubVP(beta_min=0.2, beta_max=20)": lambda: sds.SubVP(0.2),
    "ConstantVP(beta=2)": lambda: sds.ConstantVP(2),
    "CosineVP(s=0.008)": sds.CosineVP,
    "RectifiedFlow()": sds.RectifiedFlow,
    "RectifiedFlow(shift=3)": lambda: sds.RectifiedFlow(3),
    "ShiftedFlow(shift=3)": lambda: sds.ShiftedFlow(3.0),
    "TrigFlow(sigma_data=0.5)": lambda: sds.TrigFlow(0.5),
}


@pytest.mark.parametrize("text", TEXTS)
def test_the_repr_is_the_call(text: str) -> None:
    process: Any = TEXTS[text]()
    assert repr(process) == text
    again: Any = eval(text, vars(sds))
    times = np.linspace(process.t_min, process.t_max, 7)
    assert np.array_equal(again.alpha(times), process.alpha(times))
    assert np.array_equal(again.sigma(times), process.sigma(times))


def test_other_processes_are_short() -> None:
    table = np.linspace(0.99, 0.01, 100)
    assert repr(sds.DiscreteVP(table)) == "<DiscreteVP, 100 timesteps, alphas_cumprod from 0.99 to 0.01>"

    class Own(sds.EDM):
        """A process with arguments that it does not keep."""

        def __init__(self, name: str) -> None:
            super().__init__(0.1, 2.0)

    assert repr(Own("a")) == "<Own, t from 0.1 to 2>"
