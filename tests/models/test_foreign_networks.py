"""Nothing that a network does to its arguments, to its output or to torch's modes reaches the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from process_cases import TABLE as DDPM_TABLE
from tiny_models import tiny_unet

import sdesamplers as sds
from sdesamplers.models.base import Output
from sdesamplers.sampling.loop import Evaluator

TABLE = sds.DiscreteVP(DDPM_TABLE)
WORDS: dict[str, Any] = {"num_samples": 3, "seed": 1}
EXACT = sds.MixtureModel([0.5, 0.5], [[0.5, -0.2], [-0.3, 0.4]], [0.1, 0.2], sds.VP(), dtype=torch.float32)


def right(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The mixture's epsilon."""
    return EXACT.predict(x, t.flatten().double().numpy())


def function(network: Any, **words: Any) -> sds.FunctionModel:
    return sds.FunctionModel(network, sds.VP(), "epsilon", (2,), **words)


# --- what it does to its arguments and to its output ---


class Rude:
    """The mixture's epsilon from networks with bad manners."""

    def __init__(self, manner: str) -> None:
        self.manner = manner
        self.buffer, self.kept = torch.zeros(3, 2), list[torch.Tensor]()

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for old in self.kept:
            old.fill_(7.0)  # what was given or returned before
        out = right(x, t)
        if self.manner == "in place":
            x.mul_(0.5)
        elif self.manner == "data":
            x.data.zero_()
        elif self.manner == "numpy":
            x.numpy()[:] = 3.0
        elif self.manner == "time":
            t.zero_()
        elif self.manner == "keeps":
            self.kept = [x, t, out]
        elif self.manner == "buffer":
            return self.buffer.copy_(out)
        elif self.manner == "array":
            self.buffer.copy_(out)
            return torch.from_numpy(self.buffer.numpy())
        elif self.manner == "input":
            return x.copy_(out)
        elif self.manner == "view":
            self.buffer = torch.zeros(2, 3)
            return self.buffer.copy_(out.T).T
        elif self.manner == "modes":
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float64)
        elif self.manner == "graph":
            with torch.enable_grad():
                return out + 0.0 * torch.zeros(1, requires_grad=True)
        return out


MANNERS = ("in place", "data", "numpy", "time", "keeps", "buffer", "array", "input", "view", "modes", "graph")


@pytest.mark.parametrize("manner", MANNERS)
def test_a_networks_manners_do_not_change_samples(manner: str) -> None:
    for sampler in ("quality", "ddim", "heun", "dpmpp-2m", "er-sde", "ddpm"):
        for coordinates in ("native", "angle"):
            words = {"steps": 5, "coordinates": coordinates, **WORDS}
            wanted = sds.sample(function(right), sampler, **words).samples
            found = sds.sample(function(Rude(manner)), sampler, **words).samples
            assert torch.equal(found, wanted), (sampler, coordinates)
            assert not found.requires_grad
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("manner", MANNERS)
def test_nor_do_those_of_a_model_of_ones_own(manner: str) -> None:
    class Own(sds.Model):
        process, prediction, shape = sds.VP(), "epsilon", (2,)

        def __init__(self) -> None:
            self.rude = Rude(manner)

        def predict(self, x: torch.Tensor, t: Any, condition: Any = None) -> torch.Tensor:
            return self.rude(x, torch.full((len(x), 1), float(t)))

    wanted = sds.sample(function(right), "quality", steps=6, **WORDS).samples
    assert torch.equal(sds.sample(Own(), "quality", steps=6, **WORDS).samples, wanted)


def test_a_pinned_entry_has_one_meaning_in_all_coordinates() -> None:
    """Pinning in the network's input is a change of the prediction alone: x, and so the step's own part, is kept."""

    def pinned(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x[:, 0] = 0.7
        return right(x, t)

    def said(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return right(torch.cat([torch.full_like(x[:, :1], 0.7), x[:, 1:]], 1), t)

    for coordinates in ("native", "angle", "flow", "ve"):
        words = {"steps": 6, "coordinates": coordinates, **WORDS}
        found, wanted = (sds.sample(function(f), "ddim", **words).samples for f in (pinned, said))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("batched", [True, False])
def test_two_calls_for_guidance_do_not_see_each_other(batched: bool) -> None:
    """A buffer that the second call overwrites would make both halves of guidance one."""
    buffer = torch.zeros(6, 2)

    def network(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        out = right(x, t) * (1 + 0.1 * c)
        x.zero_()
        c.fill_(9.0)
        return buffer[: len(x)].copy_(out)

    def polite(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return right(x, t) * (1 + 0.1 * c)

    options = {"conditional": True, "null_condition": torch.zeros(1, 1)}
    found, wanted = (
        sds.sample(
            sds.Guided(function(f, **options), 2.0, batched=batched),
            "ddim",
            steps=4,
            condition=torch.ones(1, 1),
            **WORDS,
        ).samples
        for f in (network, polite)
    )
    assert torch.equal(found, wanted)
    plain, same = (
        sds.sample(
            function(f, **options), "ddim", steps=4, condition=torch.ones(1, 1), guidance_scale=2.0, **WORDS
        ).samples
        for f in (network, polite)
    )
    assert torch.equal(plain, same)
    torch.testing.assert_close(plain, wanted, rtol=0, atol=1e-5)


def test_a_pipelines_network_with_hooks_that_edit() -> None:
    unet = tiny_unet()
    model = sds.from_pipeline(DDPMPipeline(unet, DDPMScheduler()))
    wanted = sds.sample(model, "dpmpp-2m", steps=4, seed=2).samples
    kept: list[Any] = []

    def after(module: Any, given: Any, output: Any) -> Any:
        for old in kept:
            old.zero_()
        given[0].zero_()
        kept.append(output[0])
        return output

    unet.register_forward_hook(after)
    assert torch.equal(sds.sample(model, "dpmpp-2m", steps=4, seed=2).samples, wanted)


def test_a_log_density_that_edits_its_input() -> None:
    def density(x: torch.Tensor) -> torch.Tensor:
        return -0.5 * x.square().sum(1)

    def rude(x: torch.Tensor) -> torch.Tensor:
        value = density(x)
        x.detach().zero_()
        return value

    def score(x: torch.Tensor) -> torch.Tensor:
        return x.neg_()

    words: dict[str, Any] = {"steps": 5, "seed": 3, "num_samples": 4}
    wanted = sds.sample(sds.DensityModel(density, (2,), score=lambda x: -x), "mala", **words).samples
    found = sds.sample(sds.DensityModel(rude, (2,), score=score), "mala", **words).samples
    assert torch.equal(found, wanted)


# --- time ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_timestep_of_a_table_is_told_exactly(dtype: torch.dtype) -> None:
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype is dtype
        seen.append(t)
        return 0.1 * x

    model = sds.FunctionModel(network, TABLE, "epsilon", (2,), dtype=dtype)
    sds.sample(model, "ddim", times=list(range(999, -1, -9)), final="min")
    assert {t.dtype for t in seen} == {torch.promote_types(dtype, torch.float32)}
    assert [float(t) for t in seen] == list(range(999, 0, -9))


class ByColumn(torch.nn.Module):
    """Takes t like x."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.cat([x, t], 1))


class ByVector(ByColumn):
    """Takes t (N,), as networks of DDPM do; another shape is an error, or another shape of the output."""

    def __init__(self, loud: bool) -> None:
        super().__init__()
        self.loud = loud

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.loud:
            return super().forward(x, t[:, None])
        return self.inner.weight[:, :2].sum() * x + t[:, None] * self.inner.bias


@pytest.mark.parametrize(
    "network", [ByColumn(), ByVector(True), ByVector(False)], ids=["column", "raises", "broadcasts"]
)
def test_what_trains_is_sampled_as_it_is(network: Any) -> None:
    """The loss by hand, and a sample beside the same network behind a function that gives it its own shape."""
    generator = torch.Generator().manual_seed(0)
    x0, noise, t = (
        torch.randn(5, 2, generator=generator),
        torch.randn(5, 2, generator=generator),
        torch.linspace(0.1, 0.9, 5),
    )
    process = sds.VP()
    alpha, sigma = (torch.as_tensor(f(t.double().numpy())).float()[:, None] for f in (process.alpha, process.sigma))
    own = t[:, None] if type(network) is ByColumn else t
    by_hand = (network(alpha * x0 + sigma * noise, own) - noise).square().mean(1)
    loss = sds.losses.denoising_loss(network, process, x0, t=t, noise=noise)
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    assert network.inner.weight.grad is not None
    shaped = lambda x, t: network(x, t if type(network) is ByColumn else t.flatten())  # noqa: E731
    for count in (3, 1):
        words = {"steps": 4, "num_samples": count, "seed": 2}
        assert torch.equal(*(sds.sample(function(f), "heun", **words).samples for f in (network, shaped)))


def test_a_network_of_diffusers_goes_into_loss_and_model_as_it_is() -> None:
    unet = tiny_unet()
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 1, 8, 8, generator=generator)
    t = torch.tensor([100.0, 800.0])
    alpha, sigma = (torch.as_tensor(f(t.double().numpy())).float().view(2, 1, 1, 1) for f in (TABLE.alpha, TABLE.sigma))
    by_hand = (unet(alpha * x0 + sigma * noise, t).sample - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(
        sds.losses.denoising_loss(unet, TABLE, x0, t=t, noise=noise), by_hand, rtol=1e-5, atol=1e-6
    )
    piped = sds.from_pipeline(DDPMPipeline(unet, DDPMScheduler(clip_sample=False, timestep_spacing="trailing")))
    model = sds.FunctionModel(unet, piped.process, "epsilon", (1, 8, 8))
    words: dict[str, Any] = {"steps": 4, "spacing": "trailing", "num_samples": 2, "seed": 5}
    assert torch.equal(sds.sample(model, "ddim", **words).samples, sds.sample(piped, "ddim", **words).samples)


def test_an_error_of_the_networks_own_comes_through() -> None:
    def broken(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise KeyError("weights")

    def wrong(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros(4, 4) @ x

    with pytest.raises(KeyError, match="weights"):
        sds.sample(function(broken), "ddim", steps=1)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size mismatch"):
        sds.sample(function(wrong), "ddim", steps=1, num_samples=3)


# --- what it returns, what it is ---


class Held:
    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


FORMS = {
    "tuple": lambda v: (v,),
    "tuple with none": lambda v: (v, None),
    "list": lambda v: [v],
    "dictionary": lambda v: {"sample": v, "loss": None},
    "object": Held,
    "parameter": torch.nn.Parameter,
    "double": lambda v: v.double(),
    "output": Output,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_outputs_that_hold_one_tensor_are_read(form: Any) -> None:
    def network(x: torch.Tensor, t: torch.Tensor) -> Any:
        return form(right(x, t))

    wanted = sds.sample(function(right), "heun", steps=3, **WORDS).samples
    assert torch.equal(sds.sample(function(network), "heun", steps=3, **WORDS).samples, wanted)
    t, x0 = torch.full((3,), 0.5), torch.ones(3, 2)
    found, loss = (sds.losses.denoising_loss(f, sds.VP(), x0, t=t, noise=x0) for f in (network, right))
    torch.testing.assert_close(found.float(), loss, rtol=1e-6, atol=0)


REFUSED = {
    "None": (lambda x: None, r"returned None \(is a `return` missing\?\)"),
    "array": (lambda x: x.numpy(), "NumPy array"),
    "pair": (lambda x: (x, x), r"a tuple of 2 \(Tensor, Tensor\)"),
    "other dictionary": (lambda x: {"eps": x}, "a dictionary with keys eps"),
    "distribution": (lambda x: torch.distributions.Normal(x, 1.0), "class Normal"),
    "complex": (lambda x: x * 1j, "complex64.*real and imaginary parts as channels"),
    "whole": (lambda x: x.long(), "int64; it must return floating-point"),
    "boolean": (lambda x: x > 0, "bool; it must"),
    "sparse": (lambda x: x.to_sparse(), "sparse"),
    "elsewhere": (lambda x: x.to("meta"), "on meta for an input on cpu"),
    "variance": (lambda x: torch.cat([x, x], 1), r"\(3, 4\) for a state of \(3, 2\); if the second half"),
    "reduced": (lambda x: x.sum(1), r"shape \(3,\) for a state"),
}


@pytest.mark.parametrize(("answer", "message"), REFUSED.values(), ids=REFUSED)
def test_other_outputs_are_refused(answer: Any, message: str) -> None:
    def network(x: torch.Tensor, t: torch.Tensor) -> Any:
        return answer(x)

    for run in (
        lambda: sds.sample(function(network), "ddim", steps=2, **WORDS),
        lambda: sds.losses.denoising_loss(network, sds.VP(), torch.zeros(3, 2)),
    ):
        with pytest.raises(sds.ModelError, match=message):
            run()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, "float32"])
def test_dtypes_that_no_state_has_are_refused(dtype: Any) -> None:
    with pytest.raises(sds.UsageError, match="floating-point dtype"):
        function(right, dtype=dtype)


def test_dtype_and_device_are_the_modules() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        for network in (ByColumn().to(dtype), ByColumn().to(dtype).forward):
            assert function(network).dtype is dtype
    assert function(ByColumn().to("meta")).device.type == "meta"
    assert function(ByColumn().double(), dtype=torch.float32, device="cpu").dtype is torch.float32
    assert function(lambda x, t: x).dtype is torch.float32
    spectral = torch.nn.Module()
    spectral.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert function(spectral).dtype is torch.float32


def test_wrapped_networks_answer_as_the_network() -> None:
    network = ByColumn().train()
    wanted = sds.sample(function(network), "ddim", steps=3, **WORDS).samples
    traced = torch.jit.trace(network, (torch.ones(3, 2), torch.ones(3, 1)))
    for other in (torch.nn.DataParallel(network), traced):
        assert torch.equal(sds.sample(function(other), "ddim", steps=3, **WORDS).samples, wanted)
        assert network.training


@pytest.mark.slow
def test_a_compiled_network_answers_as_the_network() -> None:
    network = ByVector(True).train()
    wanted = sds.sample(function(network), "ddim", steps=3, **WORDS).samples
    compiled = torch.compile(network, backend="eager")
    assert torch.equal(sds.sample(function(compiled), "ddim", steps=3, **WORDS).samples, wanted)
    assert network.training
    assert compiled.training


def test_a_model_that_has_answered_with_a_tensor_may_answer_with_more_later() -> None:
    calls: list[Any] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> Any:
        calls.append(None)
        if len(calls) < 3:
            return right(x, t)
        return Output(right(x, t).double(), 2 * right(x, t).double(), torch.full((3,), float(len(calls))))

    evaluate = Evaluator(function(network), 3, "it")
    x, point = torch.ones(3, 2), sds.Path(sds.view(sds.VP()), []).at(0.5)
    found = [evaluate(x, point) for _ in range(4)]
    assert [each.log_density is None for each in found] == [True, True, False, False]
    assert found[3].log_density.tolist() == [4.0] * 3
    assert found[3].raw.dtype is torch.float32
    assert torch.equal(found[3].unguided.raw, 2 * found[0].raw)
    assert torch.equal(found[3].raw, found[0].raw)


# --- conditions ---


def by_dict(x: torch.Tensor, t: torch.Tensor, c: dict[str, Any]) -> torch.Tensor:
    return right(x, t) * (1 + 0.1 * c["scale"]) + 0.05 * c["parts"][0] + c["parts"][1][:, None]


def by_tensor(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The same with everything in one tensor (N, 4)."""
    return right(x, t) * (1 + 0.1 * c[:, :1]) + 0.05 * c[:, 1:3] + c[:, 3:]


COUNT = 5
FLAT = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
TREE = {"scale": FLAT[:, :1], "parts": (FLAT[:, 1:3], FLAT[:, 3])}
NULL = {"scale": torch.zeros(1, 1), "parts": (torch.zeros(1, 2), 0.0)}
NAMED = function(by_dict, conditional=True, null_condition={**NULL, "parts": (torch.zeros(1, 2), torch.zeros(1))})
PLAIN = function(by_tensor, conditional=True, null_condition=torch.zeros(1, 4))


def test_conditions_may_be_dictionaries_and_tuples(tmp_path: Path) -> None:
    words: dict[str, Any] = {"steps": 4, "seed": 3, "num_samples": COUNT}

    def both(run: Any) -> None:
        found, wanted = run(NAMED, TREE), run(PLAIN, FLAT)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)

    for size in (COUNT, 2):
        both(lambda m, c, size=size: sds.sample(m, "ddim", condition=c, batch_size=size, **words).samples)
        both(
            lambda m, c, size=size: torch.cat(
                [batch.samples for batch in sds.stream(m, "ddim", condition=c, batch_size=size, **words)]
            )
        )
    both(lambda m, c: sds.sample(m, "ddim", condition=c, guidance_scale=3.0, **words).samples)
    for batched in (True, False):
        both(lambda m, c, b=batched: sds.sample(sds.Guided(m, 3.0, batched=b), "ddim", condition=c, **words).samples)
    both(lambda m, c: sds.sample(m, "rk45", condition=c, seed=3, num_samples=COUNT).samples)
    both(lambda m, c: sds.sample(m, "ddpm", condition=c, log_probs=True, **words).log_probs.float() / 10)
    both(
        lambda m, c: (
            sds.replay_log_probs(m, sds.sample(m, "ddpm", condition=c, log_probs=True, **words), slice(1, 3)).float()
            / 10
        )
    )
    both(lambda m, c: sds.encode(m, FLAT[:, :2], "heun", steps=4, condition=c, batch_size=2).samples)
    both(lambda m, c: torch.tensor(sds.log_likelihood(m, FLAT[:, :2], "heun", steps=4, condition=c, batch_size=2).nats))
    compared = [
        sds.compare(m, ["ddim"], nfe=[4], condition=c, num_samples=COUNT, seed=3, reference_samples=2).cells[0].error
        for m, c in ((NAMED, TREE), (PLAIN, FLAT))
    ]
    assert compared[0] == pytest.approx(compared[1], rel=1e-5)
    one_for_all = {"scale": FLAT[:1, :1], "parts": (FLAT[:, 1:3], FLAT[:1, 3])}
    wide = torch.cat([FLAT[:1, :1].expand(COUNT, 1), FLAT[:, 1:3], FLAT[:1, 3:].expand(COUNT, 1)], 1)
    torch.testing.assert_close(
        sds.sample(NAMED, "ddim", condition=one_for_all, **words).samples,
        sds.sample(PLAIN, "ddim", condition=wide, **words).samples,
        rtol=0,
        atol=1e-6,
    )


def test_a_job_of_a_dictionary_is_another_job_than_of_other_entries(tmp_path: Path) -> None:
    words: dict[str, Any] = {"steps": 2, "num_samples": COUNT, "batch_size": 2, "formats": ["safetensors"]}
    sds.generate(NAMED, "ddim", out=tmp_path, condition=TREE, **words)
    sds.generate(NAMED, "ddim", out=tmp_path, condition=TREE, resume=True, **words)
    other = {**TREE, "scale": TREE["scale"] + 1}
    with pytest.raises(sds.SdesamplersError, match="condition"):
        sds.generate(NAMED, "ddim", out=tmp_path, condition=other, resume=True, **words)


def test_conditions_of_other_lengths_are_refused() -> None:
    for run in (sds.sample, lambda *a, **k: list(sds.stream(*a, **k))):
        with pytest.raises(sds.UsageError, match=r"one for all.* or 3, .*not 5"):
            run(NAMED, "ddim", steps=2, num_samples=3, condition=TREE)


def test_a_tuple_of_numbers_is_still_one_label_a_sample() -> None:
    labelled = function(lambda x, t, c: right(x, t) * (1 + c[:, None]), conditional=True)
    words: dict[str, Any] = {"steps": 3, "num_samples": 3, "seed": 1}
    assert torch.equal(*(sds.sample(labelled, "ddim", condition=c, **words).samples for c in ((0, 1, 2), [0, 1, 2])))
