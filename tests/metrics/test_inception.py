"""FID through torch-fidelity: our distance against its own, on the same pictures and (random) weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sdesamplers as sds
from sdesamplers.errors import ModelError, UsageError
from sdesamplers.metrics import InceptionScorer, gaussian_statistics

try:
    import torch_fidelity as fidelity
except (ImportError, RuntimeError) as missing:  # its torchvision must be built for the torch that is there
    pytest.skip(f"torch-fidelity cannot be imported: {missing}", allow_module_level=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """InceptionV3 with random weights, in torch-fidelity's file format: the trained ones cannot be had offline."""
    import torch_fidelity.feature_extractor_inceptionv3 as home

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        net = home.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two folders of 6 coloured pictures, one blurred into its middle."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, contrast in (("first", 255), ("second", 90)):
        (folder / name).mkdir()
        for k in range(6):
            pixels = 128 + contrast * (rng.random((16, 16, 3)) - 0.5)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k:02d}.png")
    return folder


def read(folder):
    files = sorted(folder.glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files]) / 127.5 - 1


def test_the_distance_is_torch_fidelitys(weights, pictures):
    scorer = InceptionScorer(pictures / "second", weights=weights)
    found = scorer.score(read(pictures / "first"))
    words = {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": str(weights)}
    theirs = fidelity.calculate_metrics(
        input1=str(pictures / "first"),
        input2=str(pictures / "second"),
        cuda=False,
        fid=True,
        verbose=False,
        cache=False,
        **words,
    )["frechet_inception_distance"]
    assert found.count == 6
    assert found.sliced_wasserstein is None
    # Its root of a product of covariances of rank 5 in 2,048 dimensions is good to about 1e-5 of their trace.
    assert found.frechet == pytest.approx(theirs, rel=1e-3)
    assert InceptionScorer(pictures / "first", weights=weights).score(read(pictures / "first")).frechet < 1e-6 * theirs


def test_statistics_in_a_file_give_the_same(weights, pictures, tmp_path):
    folder = InceptionScorer(pictures / "second", weights=weights)
    mu, sigma = gaussian_statistics(folder.features(read(pictures / "second")))
    np.savez(tmp_path / "second.npz", mu=mu, sigma=sigma)
    filed = InceptionScorer(tmp_path / "second.npz", weights=weights)
    assert filed.score(read(pictures / "first")).frechet == pytest.approx(
        folder.score(read(pictures / "first")).frechet, rel=1e-9
    )


def test_a_job_is_scored(weights, pictures, tmp_path):
    model = sds.FunctionModel(lambda x, t: 0.9 * x, sds.VP(), "epsilon", (1, 8, 8), data_range=(-1.0, 1.0))
    scorer = InceptionScorer(pictures / "first", weights=weights)
    sds.generate(model, "ddim", steps=3, num_samples=6, out=tmp_path / "job", formats=["png"], scorer=scorer)
    scores = json.loads((tmp_path / "job" / "scores.json").read_text())
    grey = sds.sample(model, "ddim", steps=3, num_samples=6).samples
    assert scores["frechet"] == pytest.approx(scorer.score(grey).frechet, rel=1e-5)
    assert set(scores) == {"count", "scorer", "frechet"}


def test_what_cannot_be_read_is_told(weights, pictures, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        InceptionScorer(tmp_path / "nowhere", weights=weights)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not a weights file of InceptionV3"):
        InceptionScorer(pictures / "first", weights=tmp_path / "bad.pth")
    np.savez(tmp_path / "bad.npz", mean=0.0)
    with pytest.raises(ModelError, match="mu and sigma"):
        InceptionScorer(tmp_path / "bad.npz", weights=weights).score(read(pictures / "first"))
    (tmp_path / "one").mkdir()
    with pytest.raises(ModelError, match="needs two or more images"):
        InceptionScorer(tmp_path / "one", weights=weights).score(read(pictures / "first"))
    with pytest.raises(UsageError, match="1 or 3 channels"):
        InceptionScorer(pictures / "first", weights=weights).features(torch.zeros(2, 4, 8, 8))


def test_pickles_that_could_run_code_are_refused(pictures, tmp_path):
    torch.save({"weights": pytest.approx}, tmp_path / "code.pth")
    with pytest.raises(ModelError, match="not a weights file of InceptionV3"):
        InceptionScorer(pictures / "first", weights=tmp_path / "code.pth")
