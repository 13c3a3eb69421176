"""A scheduler's runs, driven by hand as a pipeline drives them, against `sds.sample` on the same network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds
from sdesamplers.pretrained.conventions import Convention, convention_of, with_shift
from sdesamplers.processes.coordinates import view
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.runs import make_path

TABLE = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS: dict[str, dict[str, Any]] = {
    "table": TABLE,
    "v": {**TABLE, "prediction_type": "v_prediction"},
    "zero SNR": {**TABLE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "dynamic flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    "reverse flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
    "edm": {"_class_name": "EDMEulerScheduler"},
    "edm v": {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "v_prediction"},
    "consistency": {"_class_name": "CMStochasticIterativeScheduler"},
    "ve": {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 50.0},
    "trigflow": {"_class_name": "SCMScheduler"},
    "angle edm": {"_class_name": "CosineDPMSolverMultistepScheduler"},
}
CONFIGS["zero SNR"]["_class_name"] = "DDIMScheduler"
REFUSED = {
    "log_density": "needs the model's density",
    "stationary": "runs on a density, not on a diffusion model",
}
SHELF = sds.samplers()
REFUSED_SAMPLERS = [name for name, spec in SHELF.items() if set(spec.needs) & set(REFUSED) or name == "paradigms"]
RUNNING = [name for name in SHELF if name not in REFUSED_SAMPLERS and "unguided" not in SHELF[name].needs]
ADAPTIVE = [name for name in RUNNING if SHELF[name].adaptive]
KINDS = (
    *("euler", "ddim", "heun", "rk4", "rk45", "dpm-adaptive"),
    *("dpmpp-2m", "dpmpp-3m", "deis", "unipc", "pndm", "exp-ab", "etdrk4", "dpm-fast"),
    *("ddpm", "euler-ancestral", "dpmpp-2m-sde", "seeds-2", "er-sde", "sa-solver", "churn", "restart"),
    *("lcm", "bdia-ddim"),
)
"""One or two samplers of each kind, which are run by default where there is a case for every sampler."""
SHAPE = (1, 2, 2)


def network(x: Tensor, told: Any) -> Tensor:
    """Any function of the input and of what it is told, smooth in both."""
    return torch.tanh(0.7 * x) + 0.3 * torch.cos(x + torch.as_tensor(told, device=x.device).float() / 300)


class Asked(sds.Model):
    """What `sds.sample` is to be given so that it asks a network as a pipeline does."""

    name = "asked"

    def __init__(self, convention: Convention, function: Callable[..., Tensor] = network, **fields: Any) -> None:
        self.convention, self.function = convention, function
        self.process, self.prediction, self.shape = convention.process, convention.prediction, SHAPE
        self.clip = convention.clip
        vars(self).update(fields)

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        told = torch.as_tensor(np.asarray(self.convention.timestep(t), dtype=np.float32))
        told = told.view(-1, *(1,) * (x.dim() - 1)) if told.dim() else told
        return self.convention.read(self.function(self.convention.scale_input(x, t), told).to(x.dtype), x, t)


def model_for(config: dict[str, Any], mu: float | None = None, **fields: Any) -> Asked:
    return Asked(with_shift(convention_of(config), config, mu), **fields)


def run(
    scheduler: Any,
    x: Tensor,
    timesteps: Iterable[Tensor] | None = None,
    function: Callable[..., Tensor] = network,
    generator: Any = None,
    edit: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Tensor, int]:
    """A pipeline's loop; `edit` is its callback, called before each evaluation."""
    count = 0
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = x if edit is None else edit(count, x)
        output = function(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
        count += 1
    return x, count


def noise(count: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def grid_of(model: sds.Model, sampler: str, steps: int, **words: Any) -> list[float]:
    """The times of the grid that `sds.sample` runs, the clean end last."""
    recipe = make_recipe(Request(sampler, steps, **words), process=model.process)[0]
    return [float(p.t) for p in make_path(model.process, recipe).points[:-1]] + [view(model.process).clean_time]


def same(found: Tensor, expected: Tensor, digits: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=digits, atol=digits * max(1.0, float(expected.abs().max())))


# --- pushed = pulled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "steps"),
    mostly_slow(
        [(sampler, steps) for steps in (1, 2, 3, 8) for sampler in RUNNING],
        keep=lambda sampler, steps: sampler in KINDS and steps in (1, 3),
    ),
)
def test_a_loop_of_steps_is_sample(sampler, steps):
    model = model_for(TABLE)
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=5)
    scheduler.set_timesteps(steps)
    assert scheduler.num_inference_steps == steps
    x = noise()
    found, count = run(scheduler, x)
    expected = sds.sample(model, sampler, steps=steps, seed=5, start=x)
    assert count == expected.nfe == len(scheduler.timesteps)
    if SHELF[sampler].coordinates == "native":
        assert torch.equal(found, expected.samples)
    else:
        same(found, expected.samples)
    with pytest.raises(sds.UsageError, match=rf"ended after {count} evaluations; call set_timesteps"):
        scheduler.step(x, scheduler.timesteps[-1], found)


@pytest.mark.parametrize("sampler", REFUSED_SAMPLERS)
def test_a_sampler_that_needs_more_than_a_pipeline_gives_says_so(sampler):
    needs = [REFUSED[need] for need in SHELF[sampler].needs if need in REFUSED]
    message = needs[0] if needs else "several times in one call, and a pipeline evaluates at one; sds.sample"

    def lay_out() -> None:
        sds.Scheduler(sampler).set_timesteps(5)

    with pytest.raises(sds.UsageError, match=f"^{sampler} .*{message}"):
        lay_out()


def test_a_sampler_that_never_evaluates_the_model_is_refused():
    @sds.sampler("idle", order=None, evaluations=0)
    def idle(x, path):
        """Returns its start, and evaluates only on an empty path."""
        for _ in path.points[:0]:
            yield x, path.points[0]
        return x

    with pytest.raises(sds.UsageError, match=r"^idle does not evaluate the model here: a pipeline has nothing to"):
        sds.Scheduler(idle).set_timesteps(5)


@pytest.fixture(scope="module")
def embedded() -> Any:
    return sds.load("fashion-mnist")


@pytest.mark.parametrize(
    "sampler",
    mostly_slow(
        ["euler", "heun", "rk4", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "pndm", "restart"],
        keep=["heun", "dpmpp-2m-sde", "unipc"],
    ),
)
def test_the_embedded_network_in_a_loop_is_sample(embedded, sampler):
    config: dict[str, Any] = {"trained_betas": (1 - table_ratio(embedded.process.alphas_cumprod)).tolist()}
    config |= {"clip_sample": False, "timestep_spacing": embedded.convention.grid.spacing}
    scheduler = sds.Scheduler(sampler, trained={"_class_name": "DDPMScheduler", **config}, seed=2)
    scheduler.set_timesteps(3)
    x = torch.randn(2, *embedded.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, _ = run(scheduler, x, function=lambda x, t: embedded.unet(x, t, return_dict=False)[0])
    expected = sds.sample(embedded, sampler, steps=3, seed=2, start=x).samples
    same(found, expected, 2e-4)  # the table itself goes through float32 betas


def table_ratio(alphas_cumprod: np.ndarray) -> np.ndarray:
    return np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


@pytest.mark.parametrize(
    "sampler", mostly_slow(["euler", "dpmpp-2m-sde", "unipc", "churn", "rk4"], keep=["dpmpp-2m-sde", "churn", "rk4"])
)
@pytest.mark.parametrize(
    "words",
    [
        *({"coordinates": c} for c in ("native", "ve", "flow", "angle")),
        {"final": "min"},
        {"spacing": "karras", "spacing_options": {"rho": 5.0}},
        {"spacing": "leading"},
        {"spacing": "trailing"},
        {"spacing": "beta"},
        {"noise": "brownian"},
        {"noise": "pyramid"},
    ],
    ids=str,
)
def test_the_words_of_sample_mean_the_same(sampler, words):
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=4, **words)
    scheduler.set_timesteps(6)
    x = noise()
    found, count = run(scheduler, x)
    expected = sds.sample(model_for(TABLE), sampler, steps=6, seed=4, start=x, **words)
    # Where there is room above the start, churn adds noise before it asks; the network was asked in vain then.
    early = sampler == "churn" and words.get("spacing") == "leading"
    assert count == expected.nfe + early
    same(found, expected.samples)


@pytest.mark.parametrize(
    "sampler",
    mostly_slow(
        ["euler", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "er-sde", "abm", "ddpm"],
        keep=["euler", "heun", "dpmpp-2m-sde", "abm"],
    ),
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_kind_of_model(kind, sampler):
    config, mu = CONFIGS[kind], 0.8 if kind == "dynamic flow" else None
    scheduler = sds.Scheduler(sampler, trained=config, seed=4)
    scheduler.set_timesteps(5, mu=mu)
    x = noise() * scheduler.init_noise_sigma
    found, count = run(scheduler, x)
    expected = sds.sample(model_for(config, mu), sampler, steps=5, seed=4, start=x)
    assert count == expected.nfe
    same(found, expected.samples)
    assert found.abs().max() > 0.05


def test_float64_latents_keep_a_float64_state():
    scheduler = sds.Scheduler("dpmpp-3m", trained=TABLE)
    scheduler.set_timesteps(8)
    x = noise(dtype=torch.float64)
    found, _ = run(scheduler, x)
    model = model_for(TABLE, dtype=torch.float64)
    expected = sds.sample(model, "dpmpp-3m", steps=8, start=x).samples
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)


def test_one_scheduler_for_one_run_after_another():
    scheduler = sds.Scheduler("dpmpp-2m", trained=TABLE)
    x = noise()
    for steps in (5, 3, 5):
        scheduler.set_timesteps(steps)
        found, _ = run(scheduler, x)
        assert torch.equal(found, sds.sample(model_for(TABLE), "dpmpp-2m", steps=steps, start=x).samples)
    scheduler.set_timesteps(5)
    scheduler.step(network(x, 999.0), scheduler.timesteps[0], x)  # and breaks off
    scheduler.set_timesteps(5)
    assert torch.equal(run(scheduler, x)[0], found)


@pytest.mark.slow
def test_eight_threads_with_a_clone_each_give_what_one_gives():
    threads_give_what_one_gives(["dpmpp-2m", "dpmpp-2m-sde", "heun", "unipc", "er-sde", "rk4", "churn", "ddpm"])


def test_two_samplers_in_eight_threads_give_what_one_gives():
    threads_give_what_one_gives(["dpmpp-2m-sde", "heun"])


def threads_give_what_one_gives(samplers: list[str]) -> None:
    """Each of eight threads runs all samplers, in another order, by clones of schedulers that all threads share."""
    parents = {name: sds.Scheduler(name, trained=TABLE, seed=3, noise="brownian") for name in samplers}

    def images(scheduler: Any) -> list[Tensor]:
        found = []
        for steps in (7, 12):
            scheduler.set_timesteps(steps)
            found.append(run(scheduler, noise(3))[0])
        return found

    alone = {name: images(parent) for name, parent in parents.items()}
    together: dict[tuple[int, str], list[Tensor]] = {}
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for name in samplers[number % len(samplers) :] + samplers[: number % len(samplers)]:
            together[number, name] = images(parents[name].clone())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 8 * len(samplers)
    for (_, name), found in together.items():
        assert all(torch.equal(a, b) for a, b in zip(found, alone[name], strict=True))


# --- starting in the middle -------------------------------------------------------------------------------------------

MIDDLE: dict[str, dict[str, Any]] = {
    "euler": {},
    "heun": {},
    "rk4": {},
    "dpmpp-2m": {},
    "unipc": {},
    "pndm": {},
    "dpm-fast": {},
    "restart": {"intervals": [[3, 2, 0.06, 0.8]]},
    "churn": {"s_churn": 5.0},
    "dpmpp-2m-sde": {},
}


def image_to_image(scheduler: Any, steps: int, strength: float) -> tuple[Tensor, int]:
    """What diffusers' image-to-image pipelines compute."""
    init = min(int(steps * strength), steps)
    first = max(steps - init, 0)
    timesteps = scheduler.timesteps[first * scheduler.order :]
    scheduler.set_begin_index(first * scheduler.order)
    return timesteps, first


@pytest.mark.parametrize("sampler", mostly_slow(MIDDLE, keep=["dpmpp-2m", "restart", "dpmpp-2m-sde"]))
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(steps=st.integers(1, 50), share=st.integers(1, 20))
def test_image_to_image_is_sample_from_the_same_grid_point(sampler, steps, share):
    options = MIDDLE[sampler]
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=6, **options)
    scheduler.set_timesteps(steps)
    timesteps, first = image_to_image(scheduler, steps, share / 20)
    assert scheduler.begin_index == first * scheduler.order
    model = model_for(TABLE)
    if first == steps:
        assert len(timesteps) == 0
        clean = noise(seed=1)
        assert scheduler.add_noise(clean, noise(seed=2), timesteps[:1].repeat(2)) is clean
        assert run(scheduler, clean, timesteps) == (clean, 0)
        return
    times = grid_of(model, sampler, steps)[first:]
    assert float(timesteps[0]) == pytest.approx(times[0], rel=1e-6)
    x = scheduler.add_noise(noise(seed=1), noise(seed=2), timesteps[:1].repeat(2))
    same(x, model.process.perturb(noise(seed=1), times[0], noise(seed=2)))
    found, count = run(scheduler, x, timesteps)
    expected = sds.sample(model, sampler, times=times, start=x, seed=6, **options)
    # Churn adds noise before it asks, where there is room above: the network has then been asked in vain once.
    early = sampler == "churn" and first > 0
    assert count == len(timesteps) == expected.nfe + early
    same(found, expected.samples)


PER_STEP = {"euler": 1, "ddim": 1, "dpmpp-2m": 1, "unipc": 1, "er-sde": 1, "heun": 2, "dpmpp-sde": 2, "rk4": 4}
INTO_ZERO = {"heun": 1, "dpmpp-sde": 1, "rk4": 1}


@pytest.mark.parametrize("sampler", mostly_slow(PER_STEP, keep=["euler", "dpmpp-2m", "rk4"]))
def test_all_pairs_of_steps_and_strength_make_the_evaluations_they_should(sampler):
    """order evaluations a step, of which the step into sigma = 0 may need fewer."""
    scheduler = sds.Scheduler(sampler, trained=TABLE)
    per_step, last = PER_STEP[sampler], INTO_ZERO.get(sampler, 1)
    for steps in range(1, 51, 1 if sampler == "heun" else 7):
        scheduler.set_timesteps(steps)
        assert scheduler.order == per_step
        for share in range(1, 21):
            timesteps, first = image_to_image(scheduler, steps, share / 20)
            left = steps - first
            assert len(timesteps) == (per_step * (left - 1) + last if left else 0)


@pytest.mark.parametrize("sampler", mostly_slow(MIDDLE, keep=["heun", "dpmpp-2m", "churn"]))
@pytest.mark.parametrize("word", ["sigmas", "timesteps"])
def test_with_a_grid_of_its_own_a_pipeline_counts_timesteps(sampler, word):
    """Flow pipelines: num_inference_steps is len(timesteps), and the run starts no higher than timesteps[t_start]."""
    config = CONFIGS["flow"]
    own = [1.0, 0.9, 0.75, 0.55, 0.4, 0.2, 0.1]
    shifted = [3 * s / (1 + 2 * s) for s in own]
    given = {"sigmas": own} if word == "sigmas" else {"timesteps": [1000 * t for t in shifted]}
    scheduler = sds.Scheduler(sampler, trained=config, seed=6, **MIDDLE[sampler])
    model = model_for(config)
    for share in range(1, 21):
        scheduler.set_timesteps(**given)
        whole = scheduler.timesteps.tolist()
        assert scheduler.order == 1
        count = len(whole)
        first = int(max(count - min(count * share / 20, count), 0))
        timesteps = scheduler.timesteps[first:]
        scheduler.set_begin_index(first)
        lowest = min(whole[: first + 1])
        step = next((k for k, t in enumerate(shifted) if 1000 * t <= lowest * (1 + 1e-6)), len(shifted))
        if first == count or step == len(shifted):
            assert len(timesteps) == 0
            continue
        x = noise()
        found, made = run(scheduler, x, timesteps)
        times = [*shifted[step:], 0.0]
        expected = sds.sample(model, sampler, times=times, start=x, seed=6, **MIDDLE[sampler])
        assert expected.nfe <= made == len(timesteps) <= expected.nfe + (sampler == "churn")
        same(found, expected.samples)


def refined(scheduler: Any, cutoff: float) -> Tensor:
    """SDXL's refiner (`denoising_start`): it counts the timesteps below a cutoff and slices from the end."""
    count = int((scheduler.timesteps < cutoff).sum().item())
    if scheduler.order == 2 and count % 2 == 0:
        count += 1
    first = len(scheduler.timesteps) - count
    timesteps = scheduler.timesteps[first:]
    scheduler.set_begin_index(first)
    return timesteps


@pytest.mark.parametrize("steps", mostly_slow([1, 2, 7, 20, 50], keep=[1, 7]))
@pytest.mark.parametrize("sampler", ["euler", "rk3", "rk4", "dpmpp-2m", "unipc", "dpmpp-2m-sde", "pndm", "dpm-fast"])
def test_denoising_start_begins_at_the_first_grid_point_below_the_cutoff(sampler, steps):
    scheduler = sds.Scheduler(sampler, trained=TABLE)
    grid = grid_of(model_for(TABLE), sampler, steps)[:-1]
    for cutoff in range(50, 1000, 50):
        scheduler.set_timesteps(steps)
        timesteps = refined(scheduler, cutoff)
        below = [t for t in grid if t < cutoff]
        assert timesteps[:1].tolist() == pytest.approx(below[:1], abs=1e-3)


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_denoising_start_of_heun_is_that_of_diffusers_heun(steps):
    """SDXL adds an evaluation for samplers of order 2, so that both begin at the last grid point above the cutoff."""
    theirs = diffusers.HeunDiscreteScheduler.from_config(TABLE)
    scheduler = sds.Scheduler("heun", trained=TABLE, spacing="linspace")
    for cutoff in range(50, 1000, 50):
        theirs.set_timesteps(steps)
        scheduler.set_timesteps(steps)
        assert len(theirs.timesteps) == len(scheduler.timesteps)
        whole = SimpleNamespace(timesteps=theirs.timesteps, order=2, set_begin_index=theirs.set_begin_index)
        expected = refined(whole, cutoff)
        found = refined(scheduler, cutoff)
        torch.testing.assert_close(found.as_subclass(Tensor), expected.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun", "rk4"])
def test_denoising_end_and_start_share_a_run(sampler):
    """A base model stops between two grid points and a refiner takes over: one whole run, cut in two."""
    scheduler = sds.Scheduler(sampler, trained=TABLE)
    scheduler.set_timesteps(8)
    x, order = noise(), scheduler.order
    whole, _ = run(scheduler, x)
    scheduler.set_timesteps(8)
    part, count = run(scheduler, x, scheduler.timesteps[: 5 * order])
    assert count == 5 * order
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5 * order)
    rest, _ = run(scheduler, part, scheduler.timesteps[5 * order :])
    same(rest, whole)


def test_slices_of_slices_and_plain_indexing():
    scheduler = sds.Scheduler("euler", trained=TABLE)
    scheduler.set_timesteps(10)
    whole = scheduler.timesteps
    numbers = whole.tolist()
    assert numbers == list(range(900, -1, -100))  # the leading grid of DDPMScheduler
    for found, expected in [
        (whole[:6][2:], numbers[2:6]),
        (whole[2:][:4], numbers[2:6]),
        (whole[2:6], numbers[2:6]),
        (whole[-3:], numbers[-3:]),
        (whole[3:3], []),
        (whole[5:2], []),
        (whole[::2], numbers[::2]),
        (whole[:], numbers),
        (whole[20:], []),
    ]:
        assert found.tolist() == expected
        assert [float(t) for t in found] == expected
        assert len(found) == len(expected)
    assert float(whole[-1]) == numbers[-1]
    assert type(whole[:1].repeat(3)) is torch.Tensor
    assert type(whole * 2) is torch.Tensor


def test_a_loop_over_a_plain_list_finds_its_start_by_the_timestep():
    scheduler = sds.Scheduler("rk4", trained=TABLE)
    scheduler.set_timesteps(6)
    plain = scheduler.timesteps.tolist()
    found, _ = run(scheduler, noise(), [torch.tensor(t) for t in plain[8:]])
    times = grid_of(model_for(TABLE), "rk4", 6)[2:]
    same(found, sds.sample(model_for(TABLE), "rk4", times=times, start=noise()).samples)
    for wrong in (plain[1], 12.5):  # the time of an inner stage, and of nothing
        scheduler.set_timesteps(6)
        for _ in range(2):
            with pytest.raises(sds.UsageError, match=f"no step of this run starts at timestep {wrong:g}; the nearest"):
                scheduler.step(noise(), wrong, noise())


# --- the state in between ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", mostly_slow([False, True], keep=[True]))
@pytest.mark.parametrize("sampler", mostly_slow(RUNNING, keep=KINDS))
def test_edited_latents_are_evaluated_and_stepped_from(sampler, in_place):
    """The same edits, at the same evaluations, as a callback of `sds.sample` makes."""

    def change(x: Tensor) -> Tensor:
        return x.mul_(0.8).add_(0.25) if in_place else x * 0.8 + 0.25

    def callback(event: sds.Event) -> None:
        if event.evaluation in (1, 2):
            scale = float(event.point.scale)
            event.x = change(event.x) if scale == 1 else scale * change(event.x / scale)

    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=8)
    scheduler.set_timesteps(4)
    found, _ = run(scheduler, noise(), edit=lambda k, x: change(x) if k in (1, 2) else x)
    expected = sds.sample(model_for(TABLE), sampler, steps=4, seed=8, start=noise(), callback=callback).samples
    same(found, expected)
    plain = sds.sample(model_for(TABLE), sampler, steps=4, seed=8, start=noise()).samples
    if sampler in MIDDLE:  # some others draw their state anew, so that little is left of an edit
        assert not torch.allclose(expected, plain, rtol=1e-3, atol=1e-3)


def constant(x: Tensor, t: Any) -> Tensor:
    """A network whose answer is the same in every precision and for every input."""
    return torch.full_like(x, 0.5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
@pytest.mark.parametrize("dtype", mostly_slow([torch.float16, torch.bfloat16], keep=[torch.float16]))
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "restart"])
def test_half_precision_latents_keep_the_float32_state(sampler, dtype, mode):
    x = noise().to(dtype)
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=8)
    echoes = {
        "as given": lambda k, x: x,
        "cloned": lambda k, x: x.clone(),
        "cast up": lambda k, x: x.float() if k % 2 else x,
        "written over itself": lambda k, x: x if x.is_inference() else x.copy_(x.clone()),
    }
    expected = sds.sample(model_for(TABLE, function=constant), sampler, steps=12, seed=8, start=x.float()).samples
    for edit in echoes.values():
        scheduler.set_timesteps(12)
        with mode():
            found, _ = run(scheduler, x.clone(), function=constant, edit=edit)
        assert torch.equal(found.to(dtype), expected.to(dtype))
    scheduler.set_timesteps(12)
    nudged, _ = run(scheduler, x.float(), function=constant, edit=lambda k, x: x.to(dtype).float())
    assert not torch.equal(nudged, expected)  # what rounding the state at each evaluation would give


@pytest.mark.parametrize("coordinates", ["native", "ve", "angle"])
def test_a_mask_replaces_what_it_covers_and_nothing_else(coordinates):
    """Inpainting in half precision: uncovered numbers keep their float32 state to the bit."""
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[1, 0, 1] = True
    x = noise().half()
    known = torch.full_like(x, 0.375)
    scheduler = sds.Scheduler("dpmpp-2m", trained=TABLE, coordinates=coordinates)
    scheduler.set_timesteps(9)
    found, _ = run(scheduler, x, function=constant, edit=lambda k, x: torch.where(mask, known, x) if k else x)

    def callback(event: sds.Event) -> None:
        if event.evaluation:
            event.x = torch.where(mask, float(event.point.scale) * known.float(), event.x)

    words = {"steps": 9, "coordinates": coordinates, "start": x.float()}
    expected = sds.sample(model_for(TABLE, function=constant), "dpmpp-2m", callback=callback, **words).samples
    assert torch.equal(found, expected.half())


def test_non_finite_latents_stay_what_they_are():
    scheduler = sds.Scheduler("euler", trained=TABLE)
    scheduler.set_timesteps(3)
    x = noise(1).half()
    x[0, 0, 0, 0] = torch.nan
    found, _ = run(scheduler, x)
    assert torch.isnan(found[0, 0, 0, 0])
    assert torch.isfinite(found).sum() == 3


# --- seeds ------------------------------------------------------------------------------------------------------------

STOCHASTIC = ["dpmpp-2m-sde", "churn", "ddpm", "restart"]


def drawn(generator: Any, count: int) -> Tensor:
    """Latents as pipelines draw them."""
    if isinstance(generator, list):
        return torch.cat([torch.randn(1, *SHAPE, generator=each) for each in generator])
    return torch.randn(count, *SHAPE, generator=generator)


def generated(sampler: str, generator: Any, count: int, **words: Any) -> Tensor:
    scheduler = sds.Scheduler(sampler, trained=TABLE, **words)
    scheduler.set_timesteps(6)
    x = drawn(generator, count)
    # The start is the same for all here, so that what differs is the steps' noise.
    return run(scheduler, torch.ones_like(x), generator=generator)[0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_an_image_follows_from_its_generator_alone(sampler):
    batch = generated(sampler, [seeded(7), seeded(8), seeded(9)], 3)
    for k, seed in enumerate((7, 8, 9)):
        assert torch.equal(generated(sampler, [seeded(seed)], 1)[0], batch[k])
    one = {count: generated(sampler, seeded(7), count) for count in (1, 2, 4)}
    assert torch.equal(one[1], one[4][:1])
    assert torch.equal(one[2], one[4][:2])
    assert torch.equal(one[1][0], batch[0])
    assert len({round(float(image.sum()), 5) for image in one[4]}) == 4
    assert torch.equal(one[4], generated(sampler, seeded(7), 4))
    expected = sds.sample(model_for(TABLE), sampler, steps=6, seed=7, start=torch.ones(4, *SHAPE)).samples
    same(one[4], expected)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_a_used_generator_gives_other_noise(sampler):
    generator = seeded(7)
    first = generated(sampler, generator, 2)
    second = generated(sampler, generator, 2)
    assert not torch.allclose(first, second, atol=1e-3)
    generator.manual_seed(7)
    assert torch.equal(generated(sampler, generator, 2), first)
    twice = seeded(7)
    scheduler = sds.Scheduler(sampler, trained=TABLE)
    ends = []
    for _ in range(3):  # from given latents: nothing but the run itself uses the generator
        scheduler.set_timesteps(6)
        ends.append(run(scheduler, torch.ones(2, *SHAPE), generator=twice)[0])
    assert not torch.allclose(ends[0], ends[1], atol=1e-3)
    assert not torch.allclose(ends[1], ends[2], atol=1e-3)


def test_a_batch_of_guided_and_unguided_halves_has_each_generator_twice():
    """DiT's pipeline steps both halves together and keeps one."""
    single = generated("ddpm", [seeded(7), seeded(8)], 2)
    scheduler = sds.Scheduler("ddpm", trained=TABLE)
    scheduler.set_timesteps(6)
    generators = [seeded(7), seeded(8)]
    drawn(generators, 2)
    double, _ = run(scheduler, torch.ones(4, *SHAPE), generator=generators)
    assert torch.equal(double, torch.cat([single, single]))


def test_the_global_generator_is_asked_only_where_nothing_else_is_given():
    torch.manual_seed(3)
    first = generated("ddpm", None, 2)
    second = generated("ddpm", None, 2)
    torch.manual_seed(3)
    assert torch.equal(generated("ddpm", None, 2), first)
    assert not torch.allclose(first, second, atol=1e-3)
    before = torch.random.get_rng_state()
    x = torch.ones(2, *SHAPE)
    for sampler, words, generator in [
        ("ddpm", {}, seeded(1)),
        ("ddpm", {}, [seeded(1), seeded(2)]),
        ("ddpm", {"seed": 4}, None),
        ("euler", {}, None),
    ]:
        scheduler = sds.Scheduler(sampler, trained=TABLE, **words)
        scheduler.set_timesteps(4)
        run(scheduler, x, generator=generator)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_a_seed_of_its_own_ignores_the_generators():
    ends = [generated("ddpm", generator, 2, seed=11) for generator in (None, seeded(1), [seeded(1), seeded(2)])]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    scheduler = sds.Scheduler("ddpm", trained=TABLE)
    scheduler.set_timesteps(2)
    with pytest.raises(sds.UsageError, match="2 generators for 3 images"):
        run(scheduler, torch.ones(3, *SHAPE), generator=[seeded(1), seeded(2)])


def test_images_and_runs_have_independent_noise():
    """With a network that answers 0, a sample is a fixed multiple of its noise; correlations are as of normals."""
    count = 4000
    scheduler = sds.Scheduler("ddpm", trained=TABLE)
    generator = seeded(5)
    columns = []
    for generators in (generator, generator, [seeded(k) for k in range(count)]):
        scheduler.set_timesteps(4)
        zeros = torch.zeros(count, 1, 1, 1)
        columns.append(run(scheduler, zeros, function=lambda x, t: torch.zeros_like(x), generator=generators)[0])
    values = torch.cat(columns, 1).flatten(1).double()
    neighbours = torch.cat([values[:-1], values[1:]], 1)
    correlation = torch.corrcoef(neighbours.T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 4.5 / count**0.5
    assert float(values.mean(0).abs().max() / values.std()) < 4.5 / count**0.5


# --- adaptive runs ----------------------------------------------------------------------------------------------------

FREE = {
    "rk45": {"rtol": 1e-3, "atol": 1e-3},
    "bosh3": {"rtol": 1e-2},
    "tsit5": {"rtol": 1e-3},
    "dop853": {"rtol": 1e-3},
    "dpm-adaptive": {"rtol": 0.05},
    "gotta-go-fast": {"rtol": 0.05},
}


@pytest.mark.parametrize("sampler", FREE)
def test_an_adaptive_run_grows_while_it_is_iterated(sampler):
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=9, **FREE[sampler])
    scheduler.set_timesteps(10)
    x, lengths = noise(1), []
    state = x
    for i, t in enumerate(scheduler.timesteps):
        state = scheduler.step(network(state, t), t, state).prev_sample
        lengths.append(len(scheduler.timesteps))
        assert lengths[-1] in (i + 1, i + 2)
    expected = sds.sample(model_for(TABLE), sampler, seed=9, start=x, **FREE[sampler])
    assert len(lengths) == expected.nfe == lengths[-1]
    assert lengths[0] == 2
    same(state, expected.samples)


@pytest.mark.parametrize("sampler", mostly_slow(FREE, keep=["rk45", "dpm-adaptive"]))
@pytest.mark.parametrize("share", [1, 7, 10])
def test_an_adaptive_run_starts_in_the_middle(sampler, share):
    model = model_for(TABLE)
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=9, **FREE[sampler])
    scheduler.set_timesteps(10)
    timesteps, first = image_to_image(scheduler, 10, share / 10)
    begin = float(np.linspace(999, 0, 11)[first])  # where `sample` starts, and as large a share of it as asked for
    assert float(timesteps[:1].repeat(2)[1]) == pytest.approx(begin, rel=1e-6, abs=1e-9)
    x = noise(1)
    found, count = run(scheduler, x, timesteps)
    if begin <= model.process.t_min:  # nothing is left but the step to the clean end
        expected = sds.sample(model, sampler, seed=9, start=x, times=[begin, view(model.process).clean_time])
    else:
        expected = sds.sample(model, sampler, seed=9, start=x, start_time=begin, **FREE[sampler])
    assert count == expected.nfe
    same(found, expected.samples)


@pytest.mark.parametrize("sampler", FREE)
def test_images_with_times_of_their_own_come_one_at_a_time(sampler):
    scheduler = sds.Scheduler(sampler, trained=TABLE, seed=9, **FREE[sampler])
    scheduler.set_timesteps(10)
    with pytest.raises(sds.UsageError, match=f"^{sampler} .* one image at a time, or use sds.sample"):
        run(scheduler, noise(2))


def test_an_adaptive_loop_that_is_interrupted_ends():
    scheduler = sds.Scheduler("rk45", trained=TABLE, rtol=1e-3)
    scheduler.set_timesteps(10)
    x, visited = noise(1), 0
    for i, t in enumerate(scheduler.timesteps):
        visited += 1
        if i >= 7:  # as pipelines do once their `interrupt` is set
            continue
        x = scheduler.step(network(x, t), t, x).prev_sample
    assert visited == 8
    scheduler.set_timesteps(10)
    found, _ = run(scheduler, noise(1))
    same(found, sds.sample(model_for(TABLE), "rk45", start=noise(1), rtol=1e-3).samples)


def test_an_adaptive_run_can_be_looked_at_while_it_runs_but_not_cut_short():
    scheduler = sds.Scheduler("rk45", trained=TABLE, rtol=1e-3)
    scheduler.set_timesteps(10)
    assert list(scheduler.timesteps) == [999.0]  # as SDXL counts them, before the loop
    x, told = noise(1), []
    for t in scheduler.timesteps:
        told.append(float(t))
        x = scheduler.step(network(x, t), t, x).prev_sample
        assert scheduler.timesteps[: len(told)].tolist() == told
        assert float(scheduler.timesteps[len(told) - 1]) == told[-1]
    same(x, sds.sample(model_for(TABLE), "rk45", start=noise(1), rtol=1e-3).samples)
    scheduler.set_timesteps(10)
    with pytest.raises(sds.UsageError, match="rk45 chooses its own steps here, so a loop cannot stop after 4"):
        run(scheduler, noise(1), scheduler.timesteps[:4])


def test_a_recipe_that_states_tolerances_is_run_to_them():
    x = noise(1)
    scheduler = sds.Scheduler("ode-exact", trained=TABLE)
    scheduler.set_timesteps(10)
    found, count = run(scheduler, x)
    expected = sds.sample(model_for(TABLE), "ode-exact", start=x)
    assert count == expected.nfe
    same(found, expected.samples)
    fixed = sds.Scheduler("ode-exact", trained=TABLE, adaptive=False)
    fixed.set_timesteps(10)
    assert len(fixed.timesteps) == sds.sample(model_for(TABLE), "ode-exact", steps=10, start=x).nfe


# --- nothing waits for the device -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "dtype"),
    mostly_slow(
        [(name, torch.float32) for name in RUNNING if name != "odeint"]  # torchdiffeq reads its tensors
        + [(name, torch.float16) for name in MIDDLE],
        keep=lambda sampler, dtype: sampler in (KINDS if dtype == torch.float32 else ("heun", "dpmpp-2m-sde", "churn")),
    ),
)
def test_a_run_reads_nothing_from_the_device(sampler, dtype):
    """On the meta device every read of a value raises, so a run that gets through has made none."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(1, device="meta").item()
    scheduler = sds.Scheduler(sampler, trained=TABLE)
    scheduler.set_timesteps(5, device="meta")
    scheduler.set_begin_index(0)
    x = torch.zeros(2, *SHAPE, device="meta", dtype=dtype)
    count, generators = 0, [seeded(1), seeded(2)]
    for t in scheduler.timesteps:
        assert t.device.type == "meta"
        edited = x.clone() if count % 2 else x
        output = network(scheduler.scale_model_input(edited, t), t).to(dtype)
        x = scheduler.step(output, t, edited, generator=generators).prev_sample
        count += 1
    assert x.shape == (2, *SHAPE)
    assert x.dtype == dtype
    assert count == len(scheduler.timesteps)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_kind_of_model_reads_from_the_device(kind):
    scheduler = sds.Scheduler("dpmpp-2m", trained=CONFIGS[kind])
    scheduler.set_timesteps(4, device="meta", mu=0.5)
    x = torch.zeros(2, *SHAPE, device="meta")
    found, count = run(scheduler, x)
    assert (found.device.type, count) == ("meta", 4)


# --- Brownian noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler", mostly_slow(["dpmpp-2m-sde", "dpmpp-sde", "er-sde", "euler-ancestral"], keep=["dpmpp-2m-sde"])
)
@pytest.mark.parametrize("kind", ["table", "edm", "flow"])
def test_brownian_noise_on_a_grid_a_few_ulp_outside_its_interval(kind, sampler):
    config = CONFIGS[kind]
    process = convention_of(config).process
    convention = convention_of(config)
    scheduler = sds.Scheduler(sampler, trained=config, noise="brownian", seed=1)
    tops = [process.t_max]
    for _ in range(3):
        tops += [np.nextafter(tops[-1], np.inf)]
    tops += [np.nextafter(process.t_max, 0), float(np.float32(process.t_max)), process.t_max * (1 + 3e-7)]
    inside = [0.7 * process.t_max, 0.3 * process.t_max, 0.1 * process.t_max]
    ends = [process.t_min, np.nextafter(process.t_min, np.inf), np.nextafter(process.t_min, -np.inf)]
    x, results = noise(), []
    for top in tops:
        for end in ends:
            times = np.array([top, *inside, end])
            scheduler.set_timesteps(timesteps=convention.timestep(times) if kind != "table" else times)
            found, _ = run(scheduler, x)
            assert torch.isfinite(found).all()
            if kind != "flow" or top >= process.t_max:  # below it a flow's first step has noise, at it there is none
                results.append(found)
    for found in results:
        torch.testing.assert_close(found, results[0], rtol=1e-2, atol=1e-2)


def test_brownian_noise_between_points_an_ulp_apart():
    scheduler = sds.Scheduler("dpmpp-2m-sde", trained=TABLE, noise="brownian", seed=1)
    close = [900.0, 500.0, np.nextafter(500.0, 0), 100.0]
    scheduler.set_timesteps(timesteps=close)
    found, count = run(scheduler, noise())
    assert count == 4
    assert torch.isfinite(found).all()
