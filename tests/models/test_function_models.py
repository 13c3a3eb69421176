"""A function of a condition as a model: the condition of each sample is the one that it is given."""

from __future__ import annotations

import pytest
import torch

import sdesamplers as sds

WORDS = {"steps": 6, "num_samples": 4, "seed": 3, "dtype": torch.float64}
PROCESS = sds.RectifiedFlow()


def velocity(x, t, mean):
    """Of the flow whose data are N(mean, 0.25 I)."""
    gain = 0.25 * (1 - t) / (0.25 * (1 - t) ** 2 + t**2)
    x0 = mean + gain * (x - (1 - t) * mean)
    return (x - (1 - t) * x0) / t - x0


def given_a_mean(**options):
    return sds.FunctionModel(
        lambda x, t, mean: velocity(x, t, mean.view(len(x), -1)),
        PROCESS,
        "flow",
        (2,),
        dtype=torch.float64,
        conditional=True,
        **options,
    )


def around(mean):
    """The same for one mean, without a condition."""
    return sds.FunctionModel(lambda x, t: velocity(x, t, mean), PROCESS, "flow", (2,), dtype=torch.float64)


def test_each_sample_has_its_own_condition_whatever_the_batch():
    means = [-1.0, 0.5, 0.5, 2.0]
    expected = torch.stack([sds.sample(around(m), "heun", **WORDS).samples[k] for k, m in enumerate(means)])
    for batch_size in (1, 3, 4):
        got = sds.sample(given_a_mean(), "heun", condition=means, batch_size=batch_size, **WORDS).samples
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("condition", [0.5, [0.5], torch.tensor(0.5), torch.tensor([[0.5, 0.5]])])
def test_one_condition_is_for_all(condition):
    got = sds.sample(given_a_mean(), "euler", condition=condition, **WORDS).samples
    torch.testing.assert_close(got, sds.sample(around(0.5), "euler", **WORDS).samples, rtol=1e-12, atol=1e-12)


def test_labels_stay_whole_numbers_and_embeddings_take_the_models_dtype():
    model = given_a_mean()
    assert model.condition_for([1, 2], 2).dtype == torch.int64
    assert model.condition_for(torch.zeros(1, 3, dtype=torch.float16), 2).dtype == torch.float64


def test_guidance_leads_away_from_the_null_condition():
    # Both velocities are linear in their mean, so that the guided one is that of null + scale (condition - null).
    model = given_a_mean(null_condition=-0.5)
    got = sds.sample(model, "heun", condition=1.0, guidance_scale=3.0, **WORDS).samples
    torch.testing.assert_close(got, sds.sample(around(4.0), "heun", **WORDS).samples, rtol=1e-10, atol=1e-10)
    bare = sds.sample(model, "heun", **WORDS).samples
    torch.testing.assert_close(bare, sds.sample(around(-0.5), "heun", **WORDS).samples, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "give condition="),
        ([1.0, 2.0, 3.0], "4, one per sample, not 3"),
        ("a cat", "tensor or numbers, not 'a cat'"),
        ([[1.0], [2.0, 3.0]], "tensor or numbers"),
    ],
)
def test_conditions_that_do_not_fit_are_named(condition, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(given_a_mean(), "euler", condition=condition, **WORDS)


def test_guidance_without_a_null_condition_and_conditions_without_a_function_of_them_are_errors():
    with pytest.raises(sds.UsageError, match=r"no unconditional input.* wrap it with null_condition="):
        sds.sample(given_a_mean(), "euler", condition=1.0, guidance_scale=2.0, **WORDS)
    with pytest.raises(sds.UsageError, match="takes no condition"):
        sds.sample(around(0.0), "euler", condition=1.0, **WORDS)
    with pytest.raises(sds.UsageError, match="conditional=True"):
        sds.FunctionModel(velocity, PROCESS, "flow", (2,), null_condition=1)
