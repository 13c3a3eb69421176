"""Butcher tableaus of explicit Runge-Kutta methods, for `runge_kutta` and, at the end, for `stochastic_runge_kutta`.

To add a method to `runge_kutta`, add its tableau to `METHODS` or `PAIRS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

        k_i = v(x_t + h sum_j a_ij k_j, t + c_i h)
        x_s = x_t + h sum_i b_i k_i

    Attributes:
        name: name of the sampler.
        title: name of the method, the start of the sampler's docstring.
        reference: the publication.
        order: order of convergence.
        nodes: c_2 ... c_s.
        stages: the rows a_2 ... a_s.
        weights: b_1 ... b_s.
        error: coefficients of k_1 ... k_s in the error estimate, and of the slope at the end of the step if the
            estimate uses it ("first same as last": that slope is k_1 of the next step). Empty without an estimate.
        damper: coefficients of a second estimate, of lower order, which scales the first one down (dop853).
        error_order: order of the error estimate in h, which sets the exponents of the step-size controller.
    """

    name: str
    title: str
    reference: str
    order: int
    nodes: Row
    stages: tuple[Row, ...]
    weights: Row
    error: Row = ()
    damper: Row = ()
    error_order: int = 0

    @property
    def fsal(self) -> bool:
        """True if the error estimate uses the slope at the end of the step ("first same as last")."""
        return len(self.error) > len(self.weights)


MIDPOINT = Tableau(
    "midpoint",
    "Explicit midpoint rule",
    "Runge 1895; Hairer, Norsett & Wanner 1993, II.1",
    order=2,
    nodes=(1 / 2,),
    stages=((1 / 2,),),
    weights=(0.0, 1.0),
)
RALSTON = Tableau(
    "ralston",
    "Ralston's second-order method, with the smallest bound on the truncation error",
    "Ralston 1962, eq. 3.5",
    order=2,
    nodes=(2 / 3,),
    stages=((2 / 3,),),
    weights=(1 / 4, 3 / 4),
)
RK3 = Tableau(
    "rk3",
    "Kutta's third-order method",
    "Kutta 1901; Butcher 2016, section 233",
    order=3,
    nodes=(1 / 2, 1.0),
    stages=((1 / 2,), (-1.0, 2.0)),
    weights=(1 / 6, 2 / 3, 1 / 6),
)
SSPRK3 = Tableau(
    "ssprk3",
    "Third-order strong-stability-preserving method, a convex combination of Euler steps",
    "Shu & Osher 1988, eq. 2.18",
    order=3,
    nodes=(1.0, 1 / 2),
    stages=((1.0,), (1 / 4, 1 / 4)),
    weights=(1 / 6, 1 / 6, 2 / 3),
)
RK4 = Tableau(
    "rk4",
    "The classical fourth-order method",
    "Kutta 1901; Hairer, Norsett & Wanner 1993, table II.1.2",
    order=4,
    nodes=(1 / 2, 1 / 2, 1.0),
    stages=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
RK4_38 = Tableau(
    "rk4-38",
    "Kutta's 3/8 rule, of fourth order",
    "Kutta 1901; Hairer, Norsett & Wanner 1993, table II.1.2",
    order=4,
    nodes=(1 / 3, 2 / 3, 1.0),
    stages=((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    weights=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)
BOSH3 = Tableau(
    "bosh3",
    "Bogacki-Shampine 3(2)",
    "Bogacki & Shampine 1989; PI control: Gustafsson 1991",
    order=3,
    nodes=(1 / 2, 3 / 4),
    stages=((1 / 2,), (0.0, 3 / 4)),
    weights=(2 / 9, 1 / 3, 4 / 9),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    error_order=3,
)
RK45 = Tableau(
    "rk45",
    "Dormand-Prince 5(4)",
    "Dormand & Prince 1980, table 2; Hairer, Norsett & Wanner 1993, II.4; PI control: Gustafsson 1991",
    order=5,
    nodes=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    stages=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    error_order=5,
)
TSIT5 = Tableau(
    "tsit5",
    "Tsitouras 5(4)",
    "Tsitouras 2011, table 1; PI control: Gustafsson 1991",
    order=5,
    nodes=(0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
    stages=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    weights=(0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    error=(
        -0.001780011052225777,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    error_order=5,
)
DOP853 = Tableau(
    "dop853",
    "Dormand-Prince 8(5,3)",
    "Prince & Dormand 1981; coefficients and error estimate: Hairer, Norsett & Wanner 1993, II.5 and II.10",
    order=8,
    nodes=(
        0.05260015195876773,
        0.0789002279381516,
        0.1183503419072274,
        0.2816496580927726,
        1 / 3,
        1 / 4,
        4 / 13,
        127 / 195,
        3 / 5,
        6 / 7,
        1.0,
    ),
    stages=(
        (0.05260015195876773,),
        (0.0197250569845379, 0.0591751709536137),
        (0.02958758547680685, 0.0, 0.08876275643042054),
        (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
        (1 / 27, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
        (19 / 512, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -9 / 512),
        (
            *(0.03709200011850479, 0.0, 0.0, 0.17038392571223998),
            *(0.10726203044637328, -0.015319437748624402, 0.008273789163814023),
        ),
        (
            *(0.6241109587160757, 0.0, 0.0, -3.3608926294469414),
            *(-0.868219346841726, 27.59209969944671, 20.154067550477894, -43.48988418106996),
        ),
        (
            *(0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843),
            *(21.230051448181193, 15.279233632882423, -33.28821096898486, -0.020331201708508627),
        ),
        (
            *(-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295),
            *(-8.149787010746927, -18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196),
        ),
        (
            *(2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188),
            *(27.94888452941996, -2.8589982771350235, -8.87285693353063, 12.360567175794303, 0.6433927460157636),
        ),
    ),
    weights=(
        *(0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585),
        *(0.3111643669578199, -0.1521609496625161, 0.20136540080403034, 0.04471061572777259),
    ),
    error=(
        *(0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502, 1.6643771824549864),
        *(-0.35032884874997366, 0.3341791187130175, 0.08192320648511571, -0.022355307863886294),
    ),
    damper=(
        *(-0.18980075407240762, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585),
        *(-0.4226823213237919, -0.1521609496625161, 0.20136540080403034, 0.02265179219836082),
    ),
    error_order=8,
)

METHODS = (MIDPOINT, RALSTON, RK3, SSPRK3, RK4, RK4_38)
"""Fixed-step methods."""
PAIRS = (BOSH3, RK45, TSIT5, DOP853)
"""Embedded pairs: methods with an error estimate, for adaptive steps."""


class AdditiveTableau(NamedTuple):
    """Tableau of a stochastic Runge-Kutta method for additive noise (Roessler 2010).

        x_i = x_t + h sum_j drift_ij a_j + (noise_i1 g(s) + noise_i2 g(t)) I10 / h        at t + node_i h
        x_s = x_t + h sum_i weights_i a_i + g(s) I1 + (g(t) - g(s)) I10 / h

    `nodes`, `drift` and `noise` have a row for each stage after the first.
    """

    nodes: tuple[float, ...]
    drift: tuple[tuple[float, ...], ...]
    noise: tuple[tuple[float, float], ...]
    weights: tuple[float, ...]


SRA1 = AdditiveTableau((0.75,), ((0.75,),), ((1.5, 0.0),), (1 / 3, 2 / 3))
SRA3 = AdditiveTableau((1.0, 0.5), ((1.0,), (0.25, 0.25)), ((0.0, 0.0), (1.0, 0.5)), (1 / 6, 1 / 6, 2 / 3))
