"""Default grids: the makers' own where a configuration says it, the distilled models', and no wasted evaluation."""

import contextlib
import math

import diffusers
import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import PROCESSES, TABLE
from scheduler_configurations import CONFIGURATIONS, MU, SD

import sdesamplers as sds

BY_SIGMAS = {
    *("dpm karras", "dpm lu", "unipc exponential", "dpm flow", "unipc flow", "euler karras", "euler exponential"),
    *("euler beta", "heun karras", "kdpm2"),
}
"""Grids of sigmas: their classes round the timesteps that belong to them, or read them off straight lines."""


def scheduler(name, sampler="ddim", **words):
    return sds.Scheduler.from_config(CONFIGURATIONS[name], sampler, **words)


def mu_of(config):
    return {"mu": MU} if config.get("use_dynamic_shifting") else {}


def told_by_its_class(config, steps):
    """The timesteps of a class's own run, those of a second stage left out, as its pipelines lay it out."""
    kind = config["_class_name"]
    own = getattr(diffusers, kind).from_config(config)
    if kind.startswith("FlowMatch") and "Heun" not in kind:
        # As FLUX's and most others' pipelines call it where their caller says nothing.
        own.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), **mu_of(config))
    elif kind == "FlowMatchHeunDiscreteScheduler":
        u = np.linspace(1.0, 1 / steps, steps)
        return 1000 * config["shift"] * u / (1 + (config["shift"] - 1) * u)
    elif kind == "SCMScheduler":
        own.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
        return own.timesteps[:-1].numpy()
    elif kind == "ScoreSdeVeScheduler":  # networks are told sigma
        own.set_timesteps(steps)
        own.set_sigmas(steps)
        return own.sigmas.numpy()
    else:
        own.set_timesteps(steps, **mu_of(config))
    order = -1 if not config.get("invert_sigmas") else 1
    return np.unique(own.timesteps.double().numpy())[::order]


SLOW_TO_MAKE = [name for name, config in CONFIGURATIONS.items() if config["_class_name"].startswith("KDPM2")]
"""Whose classes lay out all training steps, one by one, when they are made."""


def slow_to_make(names):
    """The names, those that take seconds each in the slow suite."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_TO_MAKE else name for name in names]


@pytest.mark.parametrize("steps", [2, 4, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (8, 20))])
@pytest.mark.parametrize("name", slow_to_make(CONFIGURATIONS))
def test_the_default_grid_is_that_of_the_configurations_class(name, steps):
    config = CONFIGURATIONS[name]
    ours = scheduler(name)
    ours.set_timesteps(steps, **mu_of(config))
    found = ours.timesteps.double().numpy()
    if name in BY_SIGMAS:
        process = ours.convention.process
        own = getattr(diffusers, config["_class_name"]).from_config(config)
        own.set_timesteps(steps)
        times = ours.convention.time(found)
        levels = process.sigma(times) if "flow" in name else process.ratio(times)
        np.testing.assert_allclose(levels, np.unique(own.sigmas.numpy())[:0:-1], rtol=2e-3 if steps > 8 else 5e-4)
        return
    right = told_by_its_class(config, steps)
    assert len(found) == len(right)
    np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-4 * max(1e-3, np.abs(right).max() / 1000))


# Of "ve" the makers' last sigma is 0.01.
OTHERS = [name for name in CONFIGURATIONS if name != "ve"]


@pytest.mark.parametrize(
    "name", mostly_slow(slow_to_make(OTHERS), keep=lambda name: name in OTHERS[::3] and name not in SLOW_TO_MAKE)
)
def test_every_evaluation_of_a_default_grid_moves_the_sample(name):
    """The answer at the last timestep is changed by 1; sigma is 1e-3 at the least of all these classes' last ones."""
    ours = scheduler(name, "lcm" if CONFIGURATIONS[name]["_class_name"] in ("LCMScheduler", "TCDScheduler") else "ddim")
    for steps in (2, 4):
        ends = []
        for change in (0.0, 1.0):
            ours.set_timesteps(steps, **mu_of(CONFIGURATIONS[name]))
            x = torch.full((1, 2), 0.5, dtype=torch.float64)
            for k, t in enumerate(ours.timesteps):
                x = ours.step(torch.tanh(x) + change * (k == steps - 1), t, x, torch.manual_seed(0)).prev_sample
            ends.append(x)
        assert float((ends[0] - ends[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
@pytest.mark.parametrize("sampler", ["lcm", "tcd", "consistency", "LCM", "LCMScheduler", "TCDScheduler"])
def test_distilled_samplers_run_at_the_distilled_timesteps_of_any_table(sampler, steps):
    """Of the table's own class or another's: an adapter makes a consistency model of a model with any configuration."""
    lcm = diffusers.LCMScheduler(**SD)
    lcm.set_timesteps(steps)
    for name in ("lcm", "euler leading"):
        ours = scheduler(name, sampler)
        ours.set_timesteps(steps)
        assert ours.timesteps.tolist() == lcm.timesteps.tolist()


def test_four_of_fifty_are_those_of_the_paper_and_may_be_four_of_another_number():
    ours = scheduler("lcm", "lcm")
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [999, 759, 499, 259]
    ours.set_timesteps(4, original_inference_steps=100)
    lcm = diffusers.LCMScheduler(**SD)
    lcm.set_timesteps(4, original_inference_steps=100)
    assert ours.timesteps.tolist() == lcm.timesteps.tolist() != [999, 759, 499, 259]
    ours = scheduler("lcm of 25", "lcm")
    ours.set_timesteps(4)
    lcm = diffusers.LCMScheduler.from_config(CONFIGURATIONS["lcm of 25"])
    lcm.set_timesteps(4)
    assert ours.timesteps.tolist() == lcm.timesteps.tolist()
    for strength in (0.5, 0.7):
        ours.set_timesteps(4, strength=strength)
        lcm.set_timesteps(4, strength=strength)
        assert ours.timesteps.tolist() == lcm.timesteps.tolist()


def test_a_tcd_pipeline_that_passes_its_teachers_steps_gets_any_timesteps():
    ours, tcd = scheduler("tcd", "tcd"), diffusers.TCDScheduler(**SD)
    ours.set_timesteps(4, original_inference_steps=50)
    tcd.set_timesteps(4, original_inference_steps=50)
    assert ours.timesteps.tolist() == tcd.timesteps.tolist()


def test_more_steps_than_the_teacher_had_are_even():
    ours = scheduler("lcm", "lcm")
    ours.set_timesteps(60)
    assert len(set(ours.timesteps.tolist())) == 60


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp-2m", "consistency"])
def test_no_default_grid_without_a_configuration_ends_next_to_the_clean_end(sampler, process, steps):
    """A change of x0 at the last evaluation by 1 moves the sample by some 1; next to the clean end by sigma alone."""
    from sdesamplers.sampling.arguments import make_recipe
    from sdesamplers.sampling.request import Request
    from sdesamplers.sampling.runs import make_path

    made = PROCESSES[process]
    path = make_path(made, make_recipe(Request(sampler, steps), process=made)[0])
    assert len(path.points) == steps + 1
    assert path.points[-1].is_clean
    assert path.points[-2].ratio > {1: 1.0, 2: 0.3, 4: 0.08, 8: 0.02}[steps]


def test_even_grids_of_flow_models_are_the_makers():
    flow = sds.RectifiedFlow()
    from sdesamplers.sampling.arguments import make_recipe
    from sdesamplers.sampling.request import Request
    from sdesamplers.sampling.runs import make_path

    def times(process, steps, **words):
        return [
            p.t for p in make_path(process, make_recipe(Request("euler", steps, **words), process=process)[0]).points
        ]

    assert times(flow, 4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(sds.RectifiedFlow(3.0), 4) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert times(flow, 4, final="min") == pytest.approx(np.linspace(1, 1e-3, 5))  # both ends, where it ends there


# --- a caller's own grid ----------------------------------------------------------------------------------------------

FLOWS = [name for name in CONFIGURATIONS if name.startswith("flow") and name not in ("flow heun", "flow lcm")]
GRIDS = ([1.0, 0.75, 0.5, 0.25], [1.0, 0.76, 0.5, 0.25], [1.0, 0.5], [1.0, 0.8, 0.3, 0.29], [0.9, 0.6, 0.3])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m", "quality", "fast", "abm", "heun"])
@pytest.mark.parametrize("name", [n for n in FLOWS if n not in ("flow karras", "flow exponential", "flow beta")])
def test_sigmas_of_a_flow_model_are_run_exactly(name, sampler):
    """As FlowMatchEulerDiscreteScheduler shifts and stretches them, whatever they are."""
    config = CONFIGURATIONS[name]
    for grid in GRIDS:
        own = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        own.set_timesteps(sigmas=grid, **mu_of(config))
        ours = scheduler(name, sampler)
        ours.set_timesteps(sigmas=grid, **mu_of(config))
        found = list(dict.fromkeys(ours.timesteps.tolist()))
        np.testing.assert_allclose(found, own.timesteps.numpy(), rtol=1e-5, atol=1e-4)
        assert ours.num_inference_steps == len(grid)


@pytest.mark.parametrize("steps", [2, 4, 20])
def test_a_named_spacing_replaces_what_the_pipeline_passes_and_nothing_else(steps):
    even = np.linspace(1.0, 1 / steps, steps).tolist()
    named = scheduler("flow", "euler", spacing="flow-shift", spacing_options={"shift": 3.0})
    named.set_timesteps(sigmas=even)
    assert len(named.timesteps) == steps
    assert not np.allclose(named.timesteps.numpy() / 1000, even)
    own = [*np.linspace(1.0, 0.4, steps + 1).tolist()]
    named.set_timesteps(sigmas=own)
    np.testing.assert_allclose(named.timesteps.numpy() / 1000, own, atol=1e-6)


@pytest.mark.parametrize("name", ["flow karras", "flow exponential", "flow beta"])
def test_the_pipelines_even_grid_is_what_its_class_makes_of_it(name):
    config, even = CONFIGURATIONS[name], np.linspace(1.0, 1 / 6, 6).tolist()
    own = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    own.set_timesteps(sigmas=even)
    ours = scheduler(name, "euler")
    ours.set_timesteps(sigmas=even)
    np.testing.assert_allclose(ours.timesteps.numpy(), own.timesteps.numpy(), rtol=1e-5)


def test_timesteps_of_a_table_are_run_exactly():
    for grid in ([999, 500, 499, 3], [981.5, 20.25], [999, 749, 499, 249]):
        ours = scheduler("ddim leading", "dpmpp-2m")
        ours.set_timesteps(timesteps=grid)
        assert ours.timesteps.tolist() == grid


# --- end points -------------------------------------------------------------------------------------------------------


def network(x, t):
    """Some smooth function of both."""
    return torch.tanh(1.3 * x + 0.4) * (0.8 + 2e-4 * float(t))


OWN_SAMPLERS = {
    **dict.fromkeys(
        ("ddim leading", "ddim leading to one", "ddim trailing", "euler leading", "euler trailing"), "ddim"
    ),
    **dict.fromkeys(("dpm leading", "dpm trailing to sigma_min"), "dpmpp-2m"),
    **dict.fromkeys(("flow", "flow shifted", "flow terminal", "flow karras"), "euler"),
    "dpm linspace": "DPMSolverMultistepScheduler",
}


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", OWN_SAMPLERS)
def test_the_class_s_own_method_on_the_default_grid_ends_where_the_class_does(name, steps):
    config = CONFIGURATIONS[name]
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    ours = scheduler(name, OWN_SAMPLERS[name])
    ours.set_timesteps(steps, **mu_of(config))
    if name.startswith("flow"):
        own.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), **mu_of(config))
    else:
        own.set_timesteps(steps)
    start = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    theirs, x = start, start
    if name.startswith("euler"):  # whose latents are x / alpha
        theirs = start * float((own.sigmas[0] ** 2 + 1) ** 0.5)
    for t in own.timesteps:
        theirs = own.step(network(own.scale_model_input(theirs, t), t) if hasattr(own, "scale_model_input") else
                          network(theirs, t), t, theirs).prev_sample  # fmt: skip
    for t in ours.timesteps:
        x = ours.step(network(x, t), t, x).prev_sample
    assert float((x - theirs).abs().max()) < 1e-3


def test_a_class_s_name_on_its_own_configuration_is_that_configuration():
    """DDIM's name stands for the grid of DDIM's defaults, whose offset is 0, on other models alone."""
    ours = scheduler("ddim leading", "DDIMScheduler")
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [751, 501, 251, 1]
    ours = scheduler("euler trailing", "DDIMScheduler")
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [750, 500, 250, 0]


def test_a_sampler_with_a_grid_of_its_own_and_a_named_grid_leave_the_makers_alone():
    ours = scheduler("ddim leading", "heun")  # Karras et al.'s
    ours.set_timesteps(5)
    assert ours.timesteps.tolist()[0] == 999
    ours = scheduler("ddim leading", "ddim", spacing="trailing")
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [999, 749, 499, 249]


def test_encoding_goes_from_end_to_end_where_the_makers_grid_does_not():
    """The makers' leading grid begins at timestep 751 of 4, where much of the signal is left."""
    from sdesamplers.pretrained.conventions import convention_of

    process = convention_of(CONFIGURATIONS["ddim leading"]).process
    model = sds.GaussianModel([0.2, -0.1], 0.3, process)
    x = torch.full((1, 2), 0.4, dtype=torch.float64)
    latents = sds.encode(model, x, "ddim", steps=200).samples
    spread = math.sqrt(float(process.alpha(999.0)) ** 2 * 0.3 + float(process.sigma(999.0)) ** 2)
    right = (x - torch.tensor([[0.2, -0.1]])) / math.sqrt(0.3) * spread
    assert float((latents - right).abs().max()) < 0.05


def test_makers_grids_are_shown_in_the_recipe_and_can_be_named():
    from sdesamplers.pretrained.conventions import convention_of

    process = convention_of(CONFIGURATIONS["ddim leading"]).process
    model = sds.GaussianModel([0.0], 1.0, process)
    with contextlib.suppress(UserWarning):
        result = sds.sample(model, "ddim", steps=4)
    assert (result.recipe.spacing, result.recipe.final) == ("own", "min")
    same = sds.sample(model, "ddim", steps=4, spacing="own", final="min")
    assert torch.equal(result.samples, same.samples)
    plain = sds.GaussianModel([0.0], 1.0, sds.DiscreteVP(TABLE))
    assert sds.sample(plain, "ddim", steps=4).recipe.spacing == "even"


FINAL = {
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm-solver-2m": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver"}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
}


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("steps", [3, 6, 14, 15, 24])
@pytest.mark.parametrize("name", FINAL)
def test_the_last_step_to_the_smallest_sigma_is_of_the_class_s_order(name, steps, lower):
    """Of first order below 15 steps (`lower_order_final`), of UniPC always: a polynomial goes astray in a long step."""
    kind, words = FINAL[name]
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **words}
    config |= {"lower_order_final": lower, "timestep_spacing": "linspace"}
    config |= {} if name == "deis" else {"final_sigmas_type": "sigma_min"}  # DEIS has no other
    own = getattr(diffusers, kind)(**config)
    own.set_timesteps(steps)
    own.sigmas = own.sigmas.double()  # of which DEIS makes its coefficients, by differences
    start = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    theirs = start
    for t in own.timesteps:
        theirs = own.step(network(theirs, t), t, theirs).prev_sample
    process = sds.DiscreteVP(own.alphas_cumprod.double().tolist())
    model = sds.FunctionModel(lambda x, t: network(x, t.flatten()[0]), process, "epsilon", (8,))
    options = {"kind": "logrho"} if name == "deis" else {}
    grid = {"sigmas": own.sigmas.double().tolist(), "start": start, "num_samples": 2}
    ours = sds.sample(model, name, **grid, **options, lower_order_final=lower).samples
    assert float((ours - theirs).abs().max()) < 1e-3


NARROW = ("dpmpp-3m", "dpmpp-3m-sde", "dpmpp-2m-sde", "sa-solver", "res-2m", "res-3m", "exp-ab", "dpm-solver-v3")


@pytest.mark.parametrize("steps", mostly_slow([4, 8, 12, 16, 24], keep=[8, 24]))
@pytest.mark.parametrize("name", [*NARROW, "unipc", "deis", "UniPC"])
@pytest.mark.parametrize("process", [sds.RectifiedFlow(), sds.DiscreteVP(TABLE)], ids=["flow", "ddpm"])
def test_a_run_that_stops_at_the_smallest_sigma_does_not_overshoot_narrow_data(name, steps, process):
    """Data of standard deviation 0.25: a first-order last step leaves too little of it, a wild one many times as much.

    Before, `dpmpp-3m-sde` ended at 7.7 times that, `sa-solver` and `exp-ab` at 2.3, the label UniPC at 6.
    """
    kind = "flow" if isinstance(process, sds.RectifiedFlow) else "epsilon"
    model = sds.GaussianModel(torch.zeros(64), 0.25**2 * torch.eye(64), process, prediction=kind)
    grid = {} if name == "UniPC" else {"spacing": "linspace", "final": "min"}
    found = sds.sample(model, name, steps=steps, num_samples=64, seed=0, **grid).samples
    many = 1.75 if name in ("dpmpp-2m-sde", "dpm-solver-v3") and steps >= 15 else 1.5  # of second order, as published
    assert float(found.std()) < many * 0.25
