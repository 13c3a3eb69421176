"""`Scheduler` as a diffusers scheduler: configurations, grids, noising and what `step` returns."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds
from sdesamplers.pretrained.conventions import convention_of

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
EDM = {"_class_name": "EDMEulerScheduler"}
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}

TABLES = [
    *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler"),
    *("DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler"),
    *("PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "TCDScheduler", "UnCLIPScheduler"),
    "UniPCMultistepScheduler",
]
OTHERS = {
    "CMStochasticIterativeScheduler": "EDM",
    "EDMDPMSolverMultistepScheduler": "EDM",
    "EDMEulerScheduler": "EDM",
    "FlowMatchEulerDiscreteScheduler": "RectifiedFlow",
    "FlowMatchHeunDiscreteScheduler": "RectifiedFlow",
    "FlowMatchLCMScheduler": "RectifiedFlow",
    "IPNDMScheduler": "TrigFlow",
    "LTXEulerAncestralRFScheduler": "RectifiedFlow",
    "SCMScheduler": "TrigFlow",
    "ScoreSdeVeScheduler": "VE",
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scheduler_for(config: dict[str, Any], sampler: str = "euler", **words: Any) -> Any:
    return sds.Scheduler.from_config(config, sampler, **words)


# --- configurations ---------------------------------------------------------------------------------------------------


SET = {"beta_schedule": "scaled_linear", "beta_start": 0.002}


@pytest.mark.parametrize(
    ("name", "changed"),
    mostly_slow(
        [(name, {}) for name in TABLES] + [(name, SET) for name in TABLES if name != "UnCLIPScheduler"],
        keep=lambda name, changed: not changed and not name.startswith("KDPM2"),
    ),  # UnCLIP has one table; those of KDPM2 take seconds
    ids=str,
)
def test_a_table_is_the_one_that_its_scheduler_has(name, changed, tmp_path):
    """From the configuration in memory, which does not name its class, and from the file."""
    theirs = getattr(diffusers, name)(**changed)
    in_memory = dict(theirs.config)
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert "_class_name" not in in_memory
    assert saved["_class_name"] == name
    for config in (in_memory, saved, theirs.config):
        found = sds.Scheduler.from_config(config, "dpmpp-2m")
        torch.testing.assert_close(found.alphas_cumprod, theirs.alphas_cumprod.float(), rtol=1e-6, atol=0)
        assert len(found) == found.config.num_train_timesteps == 1000


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_kind_that_has_a_score(name, tmp_path):
    theirs = getattr(diffusers, name)()
    in_memory = dict(theirs.config)
    theirs.save_pretrained(tmp_path)
    found = sds.Scheduler.from_config(json.loads((tmp_path / "scheduler_config.json").read_text()), "euler")
    assert type(found.convention.process).__name__ == OTHERS[name]
    assert found.config.trained_class == name
    if name != "FlowMatchHeunDiscreteScheduler":  # its words are also those of a scheduler that is refused
        assert type(sds.Scheduler.from_config(in_memory).convention.process).__name__ == OTHERS[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("AmusedScheduler", "unmasks tokens"),
        ("VQDiffusionScheduler", "diffuses over tokens"),
        ("DDPMWuerstchenScheduler", "its pipeline scales itself"),
        ("FlowMapEulerDiscreteScheduler", "receives two times"),
        ("HeliosScheduler", "several resolutions"),
        ("KarrasVeScheduler", "removed its pipeline"),
        ("NoSuchScheduler", "which diffusers .* lacks"),
    ],
)
def test_a_scheduler_without_a_score_is_refused_with_the_reason(name, reason):
    with pytest.raises(sds.ModelError, match=f"{name}.*{reason}"):
        sds.Scheduler.from_config({"_class_name": name}, "euler")


@pytest.mark.slow
def test_every_scheduler_of_diffusers_is_accepted_or_refused_with_its_name():
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    assert set(TABLES) | set(OTHERS) <= set(names)
    for name in names:
        try:
            found = sds.Scheduler.from_config({"_class_name": name}, "ddim")
        except sds.ModelError as error:
            assert name in str(error)  # noqa: PT017
            assert name not in [*TABLES, *OTHERS]
        else:
            found.set_timesteps(3)
            assert len(found.timesteps) == 3


def test_a_scheduler_built_from_anothers_configuration_is_the_table_that_it_has():
    """`X.from_config(Y.config)` drops the words that Y left at its defaults, so X's own defaults hold."""
    theirs = diffusers.EulerDiscreteScheduler.from_config(diffusers.LMSDiscreteScheduler().config)
    found = sds.Scheduler.from_config(theirs.config, "euler")
    torch.testing.assert_close(found.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-6, atol=0)
    theirs = diffusers.KDPM2DiscreteScheduler.from_config(diffusers.DDIMScheduler().config)
    found = sds.Scheduler.from_config(theirs.config, "euler")
    torch.testing.assert_close(found.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-6, atol=0)


def test_the_models_words_stay_in_the_configuration():
    """Pipelines read them: steps_offset, num_train_timesteps, shift, base_image_seq_len, ..."""
    found = scheduler_for(STABLE_DIFFUSION, "dpmpp-2m", spacing="karras")
    for key, value in STABLE_DIFFUSION.items():
        if not key.startswith("_"):
            assert found.config[key] == value
    assert found.config.steps_offset == 1
    assert found.config.trained_class == "PNDMScheduler"
    flux = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=128, max_shift=1.3)
    config = scheduler_for(flux.config).config
    assert (config.base_image_seq_len, config.max_shift, config.base_shift) == (128, 1.3, 0.5)
    assert config.get("shift") == 1.0
    assert isinstance(found, SchedulerMixin)
    assert isinstance(found, ConfigMixin)


def test_diffusers_schedulers_get_their_betas_back_from_ours():
    original = diffusers.PNDMScheduler.from_config(STABLE_DIFFUSION)
    ours = sds.Scheduler.from_config(original.config, "heun", spacing="karras", seed=3)
    for config in (ours.config, json.loads(ours.to_json_string())):
        theirs = diffusers.DPMSolverMultistepScheduler.from_config(config)
        assert torch.equal(theirs.betas, original.betas)
        assert theirs.config.steps_offset == 1
        assert theirs.config.prediction_type == "epsilon"


WORDS: dict[str, Any] = {
    "spacing": "karras",
    "spacing_options": {"rho": 5.0},
    "coordinates": "ve",
    "noise": "brownian",
    "final": "min",
    "seed": 12,
}


def ends_of(scheduler: Any) -> Tensor:
    scheduler.set_timesteps(6)
    x = normal(2, 1, 2, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x) + 1e-4 * t, t, x).prev_sample
    return x


def plain(scheduler: Any) -> Any:
    """Its configuration as JSON has it, without what saving adds."""
    return json.loads(json.dumps({key: value for key, value in scheduler.config.items() if not key.startswith("_")}))


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("dpmpp-2m-sde", {"eta": 0.5}),
        ("restart", {"intervals": [[3, 2, 0.06, 0.3]]}),
        ("DPM++ 2M Karras", {}),
        ("k-heun", {}),
        ("sa-solver", {"predictor_order": 2}),
    ],
)
def test_a_scheduler_comes_back_from_everything_it_is_stored_in(sampler, options, tmp_path):
    words = {} if "arras" in sampler or sampler == "k-heun" else WORDS
    ours = sds.Scheduler.from_config(STABLE_DIFFUSION, sampler, **words, **options)
    expected = ends_of(ours)
    ours.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == "Scheduler"
    copies = {
        "from_config": sds.Scheduler.from_config(ours.config),
        "json": sds.Scheduler.from_config(json.loads(ours.to_json_string())),
        "file": sds.Scheduler.from_pretrained(tmp_path),
        "pickle": pickle.loads(pickle.dumps(ours)),
        "deepcopy": copy.deepcopy(ours),
        "clone": ours.clone(),
        "trained": sds.Scheduler(sampler, trained=ours.config, **words, **options),
        "again": sds.Scheduler.from_config(sds.Scheduler.from_config(ours.config).config),
    }
    for name, found in copies.items():
        assert type(found) is sds.Scheduler, name
        assert found is not ours
        assert plain(found) == plain(ours), name
        assert torch.equal(ends_of(found), expected), name
    assert sds.Scheduler.from_config(ours.config, return_unused_kwargs=True)[1] == {}


def test_a_clone_has_no_run_and_a_copy_has_its_own():
    ours = sds.Scheduler("euler")
    ours.set_timesteps(4)
    x = normal(1, 1, 2, 2)
    ours.step(x, ours.timesteps[0], x)
    assert (ours.step_index, ours.num_inference_steps) == (1, 4)
    assert (ours.clone().step_index, ours.clone().num_inference_steps) == (None, None)
    for found in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (found.step_index, found.num_inference_steps) == (1, 4)
        found.step(x, ours.timesteps[1], x)
        assert (found.step_index, ours.step_index) == (2, 1)
    for found in (copy.deepcopy(ours.timesteps), pickle.loads(pickle.dumps(ours.timesteps))):
        assert type(found) is Tensor
        assert torch.equal(found, ours.timesteps + 0)


def test_our_configuration_with_other_words():
    ours = sds.Scheduler.from_config(STABLE_DIFFUSION, "dpmpp-2m-sde", eta=0.5, **WORDS)
    kept = sds.Scheduler.from_config(ours.config, coordinates="flow")
    assert (kept.config.sampler, kept.config.coordinates, kept.config.spacing) == ("dpmpp-2m-sde", "flow", "karras")
    assert kept.config.options == {"eta": 0.5}
    more = sds.Scheduler.from_config(ours.config, eta=0.25)
    assert more.config.options == {"eta": 0.25}
    other = sds.Scheduler.from_config(ours.config, "unipc")
    assert (other.config.sampler, other.config.options, other.config.spacing) == ("unipc", {}, None)
    assert other.config.beta_start == 0.00085
    named = sds.Scheduler.from_config(ours.config, recipe="k-heun")
    assert named.config.sampler == "k-heun"


def test_what_sampler_may_be():
    model = sds.FunctionModel(
        lambda x, t: torch.tanh(x), sds.Scheduler("ddim").convention.process, "epsilon", (1, 2, 2)
    )

    def end(**words: Any) -> Tensor:
        scheduler = sds.Scheduler(**words)
        scheduler.set_timesteps(5)
        x = normal(1, 1, 2, 2)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        return x

    def expected(sampler: Any, **words: Any) -> Tensor:
        return sds.sample(model, sampler, steps=5, start=normal(1, 1, 2, 2), **words).samples

    result = sds.sample(model, "dpmpp-2m", steps=3, spacing="karras", coordinates="flow")
    pairs = [
        (end(sampler="DPM++ 2M Karras"), expected("DPM++ 2M Karras")),
        (end(sampler="dpmpp-2m", spacing="karras"), expected("DPM++ 2M Karras")),
        (end(sampler="k-heun"), expected("heun", spacing="karras", coordinates="ve")),
        (end(recipe="k-heun"), expected("k-heun")),
        (end(sampler=sds.samplers()["heun"]), expected("heun")),
        (end(recipe=result.recipe), expected("dpmpp-2m", spacing="karras", coordinates="flow")),
        (end(recipe=result.recipe, coordinates="ve"), expected("dpmpp-2m", spacing="karras", coordinates="ve")),
        (end(), expected("quality")),
    ]
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(pairs[0][0], pairs[2][0], atol=1e-3)
    own = sds.sample(model, "dpmpp-2m", times=[900.0, 500.0, 10.0]).recipe
    with pytest.raises(sds.UsageError, match="has its own grid; pass timesteps="):
        sds.Scheduler(recipe=own)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sampler": "eulr"}, "unknown sampler 'eulr'; did you mean"),
        ({"sampler": 3}, "must be a name, a Sampler, a Recipe or a SolverTable, not 3"),
        ({"sampler": "euler", "eta": 1.0}, "sampler 'euler' has no option 'eta'"),
        ({"sampler": "euler", "traned": {}}, "Scheduler has no argument 'traned'; did you mean trained="),
        ({"sampler": "dpmpp-2m", "ordr": 2}, "sampler 'dpmpp-2m' has no option 'ordr'; did you mean 'order'"),
        ({"sampler": "euler", "spacing": "kerras"}, "did you mean 'karras'"),
        ({"sampler": "euler", "coordinates": "vee"}, "unknown coordinates 'vee'"),
        ({"sampler": "euler", "final": "one"}, "final must be 'zero' or 'min'"),
        ({"sampler": "euler", "noise": "white"}, "unknown noise source 'white'"),
        ({"sampler": "euler", "adaptive": True}, "does not choose its own steps"),
        ({"sampler": "rk45", "rtol": 1e-3, "adaptive": False}, "not both"),
        ({"sampler": "ddpm", "seed": -1}, "seed must be a whole number"),
        ({"sampler": "ddpm", "seed": 1.5}, "seed must be a whole number"),
    ],
    ids=str,
)
def test_words_that_do_not_fit_are_refused_at_once(words, message):
    def build() -> None:
        sds.Scheduler(**words).set_timesteps(3)

    with pytest.raises(sds.UsageError, match=message):
        build()


# --- grids ------------------------------------------------------------------------------------------------------------

OWN = [1.0, 0.93, 0.71, 0.4, 0.15]


@pytest.mark.parametrize(
    ("config", "mu"),
    [
        ({}, None),
        ({"shift": 3.0}, None),
        ({"shift": 0.5}, None),
        ({"use_dynamic_shifting": True}, 0.9),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 1.7),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m"])
def test_sigmas_of_a_flow_are_shifted_as_diffusers_shifts_them(sampler, config, mu):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(sigmas=OWN, **({} if mu is None else {"mu": mu}))
    found = sds.Scheduler.from_config({**theirs.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}, sampler)
    for own in (OWN, [*OWN, 0.0], np.array(OWN), torch.tensor(OWN)):
        found.set_timesteps(sigmas=own, mu=mu)
        torch.testing.assert_close(found.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.timesteps + 0, theirs.timesteps, rtol=1e-5, atol=1e-4)
        assert (found.num_inference_steps, found.order) == (5, 1)


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
def test_the_even_sigmas_of_flow_pipelines_are_run_as_they_are_unless_a_grid_is_named(steps):
    even = np.linspace(1.0, 1 / steps, steps)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=even.tolist())
    for given in (even, even.tolist(), torch.from_numpy(even).float()):
        found = sds.Scheduler("euler", trained=FLOW)
        found.set_timesteps(sigmas=given)
        torch.testing.assert_close(found.timesteps + 0, theirs.timesteps, rtol=0, atol=1e-3)
        by_sigmas, by_steps = (sds.Scheduler("heun", trained=FLOW, spacing="power") for _ in range(2))
        by_sigmas.set_timesteps(sigmas=given)
        by_steps.set_timesteps(steps)
        assert torch.equal(by_sigmas.timesteps + 0, by_steps.timesteps + 0)
        assert by_sigmas.num_inference_steps == steps


@pytest.mark.parametrize("sigmas", [[14.0, 5.0, 1.2, 0.3], [1.0, 0.5], [1.0]])
def test_sigmas_of_a_table_are_sigma_over_alpha(sigmas):
    """Even-looking ones too: only flow pipelines pass steps in that form."""
    found = sds.Scheduler.from_config(STABLE_DIFFUSION, "euler")
    found.set_timesteps(sigmas=sigmas)
    table = found.alphas_cumprod.double()
    ratios = np.log(((1 - table) / table).sqrt().numpy())
    expected = np.interp(np.log(sigmas), ratios, np.arange(1000.0))
    assert found.timesteps.tolist() == pytest.approx(expected.tolist(), abs=0.02)
    theirs = diffusers.EulerDiscreteScheduler.from_config(STABLE_DIFFUSION)
    theirs.set_timesteps(sigmas=[*sigmas, 0.0])
    torch.testing.assert_close(found.timesteps + 0, theirs.timesteps[: len(sigmas)], rtol=0, atol=0.02)
    assert not hasattr(found, "sigmas")
    with pytest.raises(AttributeError, match="its latents are alpha x0"):
        _ = found.sigmas


def test_timesteps_are_run_as_given():
    found = sds.Scheduler("heun", trained={"_class_name": "DDPMScheduler"})
    for own in ([999, 600, 30], torch.tensor([999, 600, 30]), np.array([999.0, 600.0, 30.0])):
        found.set_timesteps(timesteps=own)
        assert found.timesteps.tolist() == [999, 600, 600, 30, 30]
        assert (found.num_inference_steps, found.order) == (3, 1)
    flow = sds.Scheduler("euler", trained=FLOW)
    for own in ([1000.0, 700.0, 50.0], [1000.0, 700.0, 50.0, 0.0]):
        flow.set_timesteps(timesteps=own)
        assert flow.timesteps.tolist() == pytest.approx([1000.0, 700.0, 50.0])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize(
    "kind",
    [
        *("DDPMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler"),
        *("CosineDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler", "SCMScheduler", "IPNDMScheduler"),
    ],
)
def test_timesteps_that_went_through_float32_can_be_given_back(kind, sampler):
    """The first one may have been rounded beyond the noisiest time there is, the last one below the cleanest."""
    found = sds.Scheduler(sampler, trained={"_class_name": kind})
    found.set_timesteps(10)
    own = found.timesteps + 0
    found.set_timesteps(timesteps=own)
    torch.testing.assert_close(found.timesteps + 0, own, rtol=1e-5, atol=1e-4)
    assert found.num_inference_steps == 10
    levels = [
        float(np.float32(point.t if kind.startswith("Flow") else point.ratio)) for point in found._run.layout.points
    ]
    found.set_timesteps(sigmas=np.minimum(levels, 1e9))
    torch.testing.assert_close(found.timesteps + 0, own, rtol=1e-4, atol=1e-3)


def test_strength_starts_the_grid_lower():
    for config, top in ((EDM, 80.0), (FLOW, 1.0), ({"_class_name": "DDPMScheduler"}, 999.0)):
        process = convention_of(config).process
        found = sds.Scheduler("euler", trained=config, spacing="linspace")
        found.set_timesteps(5, strength=0.5)
        first = float(found.convention.time(float(found.timesteps[0])))
        assert first == pytest.approx(process.t_min + 0.5 * (top - process.t_min), rel=1e-5)
        assert len(found.timesteps) == 5


def test_rounded_timesteps_are_whole_and_the_run_is_where_it_was():
    plain = sds.Scheduler("euler", trained={"_class_name": "DDPMScheduler"})
    whole = sds.Scheduler("euler", trained={"_class_name": "DDPMScheduler"}, round_timesteps=True)
    plain.set_timesteps(7)
    whole.set_timesteps(7)
    assert not whole.timesteps.is_floating_point()
    assert whole.timesteps.tolist() == [round(t) for t in plain.timesteps.tolist()]
    x = normal(1, 1, 2, 2)
    a = plain.step(x, plain.timesteps[0], x).prev_sample
    assert torch.equal(whole.step(x, whole.timesteps[0], x).prev_sample, a)


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (FLOW, {}, "needs num_inference_steps, timesteps or sigmas"),
        (FLOW, {"sigmas": []}, "sigmas must be a non-empty list of numbers"),
        (FLOW, {"timesteps": []}, "timesteps must be a non-empty list of numbers"),
        (FLOW, {"sigmas": ["a", "b"]}, "sigmas must be a list of numbers"),
        (FLOW, {"timesteps": "few"}, "timesteps must be a list of numbers"),
        (FLOW, {"sigmas": [0.2, 0.9]}, "fall strictly from noise to data"),
        (FLOW, {"sigmas": [0.9, 0.9]}, "fall strictly"),
        (FLOW, {"sigmas": [1.7, 0.9]}, "must lie between 0 and 1"),
        (FLOW, {"sigmas": [0.9, float("nan")]}, "finite numbers"),
        (FLOW, {"sigmas": [0.0]}, "two or more"),
        (EDM, {"timesteps": [5.0, 0.0]}, "must lie between 0 and 80"),
        (STABLE_DIFFUSION, {"timesteps": [1500, 10]}, "must lie between 0 and 999"),
        (STABLE_DIFFUSION, {"num_inference_steps": 0}, "steps must be a whole number of 1 or more"),
        (STABLE_DIFFUSION, {"num_inference_steps": 2.5}, "steps must be a whole number"),
        (STABLE_DIFFUSION, {"num_inference_steps": 5, "timesteps": [900, 10]}, "pass one of"),
        (STABLE_DIFFUSION, {"num_inference_steps": 5, "strength": 0.0}, "start time must lie above"),
        (STABLE_DIFFUSION, {"num_inference_steps": 5, "strength": 2.0}, "start time must lie above"),
        ({**FLOW, "use_dynamic_shifting": True}, {"num_inference_steps": 5}, "so mu is needed"),
    ],
    ids=str,
)
def test_a_grid_that_cannot_be_run_is_refused(config, given, message):
    found = sds.Scheduler.from_config(config, "euler")
    with pytest.raises(sds.UsageError, match=message):
        found.set_timesteps(**given)
    with pytest.raises(sds.UsageError, match="call set_timesteps before step"):
        found.step(normal(1, 1, 2, 2), 5.0, normal(1, 1, 2, 2))


def test_the_order_is_the_evaluations_of_a_step():
    for sampler, order in {"euler": 1, "heun": 2, "rk4": 4, "dpmpp-2m": 1, "pndm": 1}.items():
        found = sds.Scheduler(sampler)
        assert found.order == 1
        found.set_timesteps(5)
        assert found.order == order
        updates, count = 0, len(found.timesteps)  # a pipeline's progress bar
        warm_up = count - found.num_inference_steps * found.order
        for i in range(count):
            updates += i == count - 1 or (i + 1 > warm_up and (i + 1) % found.order == 0)
        assert updates == 5


# --- noising ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("timesteps", [[0, 500, 999], [250], 321], ids=str)
def test_noising_on_a_table_is_ddpms(timesteps, dtype):
    theirs = diffusers.DDPMScheduler.from_config(STABLE_DIFFUSION)
    found = sds.Scheduler.from_config(STABLE_DIFFUSION, "euler")
    x0, noise = (normal(3, 2, 2, 2, seed=s, dtype=dtype) for s in (1, 2))
    whole = torch.atleast_1d(torch.tensor(timesteps))
    exact = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    for t in (whole, whole.float(), whole.tolist(), timesteps):
        for mine, other in ((found.add_noise, theirs.add_noise), (found.get_velocity, theirs.get_velocity)):
            out = mine(x0, noise, t)
            assert out.dtype == dtype
            torch.testing.assert_close(out, other(x0, noise, whole), **exact)
    torch.testing.assert_close(found.scale_noise(x0, whole, noise), theirs.add_noise(x0, noise, whole), **exact)
    for empty in (whole[:0], whole[:0].float()):
        assert found.add_noise(x0, noise, empty) is x0
        assert found.get_velocity(x0, noise, empty) is x0


def test_noising_between_timesteps_lies_on_the_process():
    found = sds.Scheduler.from_config(STABLE_DIFFUSION, "euler")
    ones, zeros = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t in (0.25, 500.5, 998.9):
        alpha, sigma = (float(found.add_noise(*pair, torch.tensor([t]))) for pair in ((ones, zeros), (zeros, ones)))
        assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-9)
        table = found.alphas_cumprod.double().sqrt()
        assert table[int(t) + 1] < alpha < table[int(t)]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noising_of_a_flow_is_diffusers(shift):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=OWN)
    found = sds.Scheduler("euler", trained={**FLOW, "shift": shift})
    found.set_timesteps(sigmas=OWN)
    x0, noise = normal(3, 2, 2, 2, seed=1), normal(3, 2, 2, 2, seed=2)
    for k in ([0, 2, 4], [1]):
        t = theirs.timesteps[k]
        expected = theirs.scale_noise(x0, t, noise)
        torch.testing.assert_close(found.scale_noise(x0, t, noise), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.add_noise(x0, noise, t), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "shape"), [("FlowMatchEulerDiscreteScheduler", (2, 6, 4)), ("DDPMScheduler", (2, 3))])
def test_latents_of_any_rank(kind, shape):
    """Packed latents (N, tokens, channels) and plain vectors."""
    found = sds.Scheduler("dpmpp-2m-sde", trained={"_class_name": kind}, seed=1)
    found.set_timesteps(4)
    x = normal(*shape)
    assert found.add_noise(x, x, found.timesteps[1:2].repeat(2)).shape == shape
    for t in found.timesteps:
        x = found.step(torch.tanh(x), t, x).prev_sample
    assert x.shape == shape
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    ("theirs", "tolerance"),
    [
        (diffusers.DDPMScheduler(), 1e-3),
        (diffusers.FlowMatchEulerDiscreteScheduler(), 0.0),
        (diffusers.EDMEulerScheduler(), 1e-2),
        (diffusers.ScoreSdeVeScheduler(sigma_max=50.0), 1e-3),
        (diffusers.CMStochasticIterativeScheduler(), 0.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_latents_of_a_run_begin_as_large_as_diffusers(theirs, tolerance):
    expected = 1.0 if isinstance(theirs, diffusers.FlowMatchEulerDiscreteScheduler) else float(theirs.init_noise_sigma)
    found = sds.Scheduler.from_config({**theirs.config, "_class_name": type(theirs).__name__}, "euler")
    assert found.init_noise_sigma == pytest.approx(expected, abs=tolerance)
    found.set_timesteps(5)
    assert found.init_noise_sigma == pytest.approx(expected, abs=tolerance)


def test_latents_that_are_given_with_a_grid_from_the_middle_are_not_scaled():
    """Pipelines multiply them by init_noise_sigma; diffusers' schedulers of tables and flows have 1 on every grid."""
    for config in (STABLE_DIFFUSION, {**STABLE_DIFFUSION, "_class_name": "DDIMScheduler"}):
        theirs = diffusers.DPMSolverMultistepScheduler.from_config(config)
        found = sds.Scheduler.from_config(config, "dpmpp-2m")
        for first in (999, 799, 499, 99):
            theirs.set_timesteps(timesteps=[first, first // 2])
            found.set_timesteps(timesteps=[first, first // 2])
            assert found.init_noise_sigma == float(theirs.init_noise_sigma) == 1.0
    for steps in (2, 4, 20):
        found = sds.Scheduler.from_config(STABLE_DIFFUSION, "dpmpp-2m", spacing="leading")
        found.set_timesteps(steps)
        assert found.init_noise_sigma == 1.0
    flow = sds.Scheduler("euler", trained=FLOW)
    flow.set_timesteps(timesteps=[800.0, 100.0])
    assert flow.init_noise_sigma == 1.0
    edm = sds.Scheduler("euler", trained=EDM)
    edm.set_timesteps(sigmas=[30.0, 2.0])
    assert edm.init_noise_sigma == pytest.approx(30.0)


# --- steps ------------------------------------------------------------------------------------------------------------


def both(found: Any, theirs: Any, channels: int = 1) -> None:
    """One loop under both schedulers: inputs, states and x0 agree at every step."""
    x = normal(2, 1, 3, 3) * float(theirs.init_noise_sigma)
    mine, other = x, x
    assert len(found.timesteps) == len(theirs.timesteps)
    for t, s in zip(found.timesteps, theirs.timesteps, strict=True):
        given, expected = found.scale_model_input(mine, t), theirs.scale_model_input(other, s)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
        assert float(t) == pytest.approx(float(s), rel=1e-4, abs=1e-3)
        a = found.step(torch.sin(given), t, mine)
        b = theirs.step(torch.sin(expected), s, other)
        scale = 1e-4 * float(b.prev_sample.abs().max())
        torch.testing.assert_close(a.prev_sample, b.prev_sample, rtol=1e-4, atol=scale)
        if getattr(b, "pred_original_sample", None) is not None:
            scale = 1e-4 * float(b.pred_original_sample.abs().max())
            torch.testing.assert_close(a.pred_original_sample, b.pred_original_sample, rtol=1e-4, atol=scale)
        mine, other = a.prev_sample, b.prev_sample


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_steps_and_x0_are_those_of_ddim(prediction_type):
    theirs = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction_type)
    theirs.set_timesteps(8)
    found = sds.Scheduler.from_config(theirs.config, "ddim")
    found.set_timesteps(timesteps=theirs.timesteps)
    both(found, theirs)


VIDEO = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("EDMEulerScheduler", {"prediction_type": "epsilon"}),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", **VIDEO}),
    ],
    ids=["epsilon", "v", "Stable Video Diffusion"],
)
def test_steps_inputs_and_x0_are_those_of_diffusers_edm(kind, words):
    theirs = getattr(diffusers, kind)(**words)
    theirs.set_timesteps(8)
    found = sds.Scheduler.from_config({**theirs.config, "_class_name": kind}, "euler")
    found.set_timesteps(sigmas=theirs.sigmas[:-1])
    both(found, theirs)


def test_inputs_and_timesteps_of_consistency_models_are_diffusers():
    theirs = diffusers.CMStochasticIterativeScheduler()
    theirs.set_timesteps(6)
    found = sds.Scheduler("euler", trained={"_class_name": "CMStochasticIterativeScheduler"})
    found.set_timesteps(sigmas=theirs.sigmas[:6])
    torch.testing.assert_close(found.timesteps + 0, theirs.timesteps.float(), rtol=1e-4, atol=1e-2)
    x = normal(2, 1, 3, 3)
    for t, s in zip(found.timesteps, theirs.timesteps, strict=True):
        expected = theirs.scale_model_input(x, s)
        torch.testing.assert_close(found.scale_model_input(x, t), expected, rtol=1e-4, atol=1e-6)
        x = found.step(torch.sin(x), t, x).prev_sample
        theirs._step_index += 1


def test_flow_steps_are_those_of_diffusers():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=OWN)
    found = sds.Scheduler("euler", trained=FLOW)
    found.set_timesteps(sigmas=OWN)
    mine = other = normal(2, 1, 3, 3)
    for t, s in zip(found.timesteps, theirs.timesteps, strict=True):
        assert found.scale_model_input(mine, t) is mine
        sigma = float(s) / 1000
        x0 = mine - sigma * torch.sin(mine)
        out = found.step(torch.sin(mine), t, mine)
        torch.testing.assert_close(out.pred_original_sample, x0, rtol=1e-5, atol=1e-5)
        mine, other = out.prev_sample, theirs.step(torch.sin(other), s, other).prev_sample
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_ve_network_is_asked_at_sigma_with_the_state_as_it_is():
    found = sds.Scheduler("euler", trained={"_class_name": "ScoreSdeVeScheduler", "sigma_max": 50.0})
    found.set_timesteps(5)
    torch.testing.assert_close(found.sigmas[:-1], found.timesteps + 0, rtol=1e-6, atol=0)
    assert found.timesteps[0] == 50.0
    x = normal(1, 1, 2, 2)
    assert found.scale_model_input(x, found.timesteps[0]) is x
    assert not hasattr(found, "alphas_cumprod")
    with pytest.raises(AttributeError, match="not trained on a table"):
        _ = found.alphas_cumprod
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = found.nonsense


def test_what_step_returns():
    x = normal(2, 3, 2, 2)
    found = sds.Scheduler("euler", trained={"_class_name": "DDPMScheduler", "clip_sample": False})
    found.set_timesteps(3)
    out = found.step(torch.sin(x), found.timesteps[0], x)
    assert torch.equal(out[0], out.prev_sample)
    assert set(out.keys()) == {"prev_sample", "pred_original_sample"}
    found.set_timesteps(3)
    as_tuple = found.step(torch.sin(x), found.timesteps[0], x, return_dict=False)
    assert len(as_tuple) == 1
    assert torch.equal(as_tuple[0], out.prev_sample)
    found.set_timesteps(timesteps=[999])  # what pipelines of one-step models take is the x0 of their step
    state, x0 = found.step(torch.sin(x), found.timesteps[0], x, return_dict=False)
    alpha = float(found.alphas_cumprod[-1]) ** 0.5
    torch.testing.assert_close(x0, (x - (1 - alpha**2) ** 0.5 * torch.sin(x)) / alpha, rtol=1e-4, atol=1e-3)
    for kind in ("LCMScheduler", "TCDScheduler", "SCMScheduler"):  # whose pipelines unpack two
        pair = sds.Scheduler("ddim", trained={"_class_name": kind})
        pair.set_timesteps(3)
        state, x0 = pair.step(torch.sin(x), pair.timesteps[0], x, return_dict=False)
        assert state.shape == x0.shape == x.shape


def test_a_learned_variance_is_cut_off_and_other_shapes_are_refused():
    x = normal(2, 3, 2, 2)
    found, cut = (sds.Scheduler("heun", trained={"_class_name": "DDPMScheduler"}) for _ in range(2))
    found.set_timesteps(3)
    cut.set_timesteps(3)
    a = b = x
    for t in found.timesteps:
        a = found.step(torch.sin(a), t, a).prev_sample
        b = cut.step(torch.cat([torch.sin(b), torch.full_like(b, 7.0)], 1), t, b).prev_sample
    assert torch.equal(a, b)
    for shape in ((2, 1, 2, 2), (1, 3, 2, 2), (2, 3, 2, 1)):
        found.set_timesteps(3)
        with pytest.raises(sds.UsageError, match=r"returned shape .* for a state of shape \(2, 3, 2, 2\)"):
            found.step(torch.zeros(shape), found.timesteps[0], x)


def test_steps_that_are_out_of_place():
    x = normal(1, 1, 2, 2)
    found = sds.Scheduler("heun", trained=EDM)
    for early in (lambda: found.step(x, 1.0, x), lambda: found.scale_model_input(x, 1.0)):
        with pytest.raises(sds.UsageError, match="call set_timesteps before step"):
            early()
    found.set_timesteps(3)
    assert found.step_index is None
    with pytest.raises(sds.UsageError, match=r"no step of this run starts at timestep 7\.5"):
        found.step(x, 7.5, x)
    found.set_begin_index(2)
    assert (found.begin_index, found.step_index) == (2, None)
    found.step(x, None, x)
    assert found.step_index == 3


def test_an_error_inside_a_sampler_ends_the_run():
    @sds.sampler("broken", order=1)
    def broken(x: Tensor, path: sds.Path) -> sds.Run:
        """Fails where the state has become large."""
        for now, then in path.steps:
            out = yield x, now
            if bool(out.x.abs().max() > 100):
                raise ArithmeticError("too large")
            x = out.step_to(then)
        return x

    found = sds.Scheduler(broken)
    assert found.config.sampler == "broken"
    found.set_timesteps(4)
    x = normal(1, 1, 2, 2)
    x = found.step(x, found.timesteps[0], x).prev_sample
    with pytest.raises(ArithmeticError, match="too large"):
        found.step(x, found.timesteps[1], x + 1000)
    with pytest.raises(sds.UsageError, match="this run ended after 2 evaluations"):
        found.step(x, found.timesteps[2], x)
    found.set_timesteps(2)
    for t in found.timesteps:
        x = found.step(x, t, x).prev_sample
    assert torch.isfinite(x).all()
    copies = [found.clone(), copy.deepcopy(found)]
    assert all(each.spec is broken for each in copies)


def test_a_sampler_that_yields_nonsense_is_named():
    @sds.sampler("nonsense", order=1)
    def nonsense(x: Tensor, path: sds.Path) -> sds.Run:
        """Forgets the point."""
        yield x
        return x

    with pytest.raises(sds.PluginError, match="a sampler yields"):
        sds.Scheduler(nonsense).set_timesteps(4)


def test_a_sampler_and_a_recipe_are_one_too_many():
    with pytest.raises(sds.UsageError, match="pass sampler or recipe, not both"):
        sds.Scheduler("euler", recipe="fast")


def test_a_scheduler_stands_for_its_configuration():
    """In memory the two classes below have the same words, and only the scheduler itself says which it is."""
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0)
    assert sds.Scheduler.from_config(heun, "euler").trained["_class_name"] == "FlowMatchHeunDiscreteScheduler"
    with pytest.raises(sds.ModelError, match="two times"):
        sds.Scheduler.from_config(diffusers.FlowMapEulerDiscreteScheduler(), "euler")
    for wrong in ("folder", 3, None):
        with pytest.raises(sds.UsageError, match=r"pipe\.scheduler\.config"):
            sds.Scheduler.from_config(wrong, "euler")


def test_what_is_no_model_is_sent_to_from_pipeline():
    for call in (sds.load, lambda what: sds.sample(what, "euler", steps=2)):
        with pytest.raises(sds.UsageError, match="from_pipeline"):
            call(object())
