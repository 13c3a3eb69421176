"""Networks of other runtimes as models: TorchScript, torch.export and ONNX Runtime give the network's own samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds

BETAS = np.linspace(1e-4, 0.02, 1000)
INPUTS = (torch.zeros(2, 1, 8, 8), torch.zeros(2))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.layer(x)) + t[:, None, None, None] / 1000


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().requires_grad_(False)


def samples(network: Any, **options: Any) -> torch.Tensor:
    model = sds.wrap(network, (1, 8, 8), betas=BETAS, **options)
    return sds.sample(model, "dpmpp-2m", steps=5, num_samples=3, batch_size=2).samples


def test_torchscript(net, tmp_path):
    torch.jit.trace(net, INPUTS, check_trace=False).save(str(tmp_path / "net.pt"))
    loaded = torch.jit.load(str(tmp_path / "net.pt"))
    torch.testing.assert_close(samples(loaded), samples(net), rtol=1e-6, atol=1e-6)


def test_torch_export(net, tmp_path):
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, INPUTS, dynamic_shapes={"x": {0: batch}, "t": {0: batch}})
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(samples(loaded), samples(net), rtol=1e-6, atol=1e-6)


def test_onnx_runtime(net, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "net.onnx"
    write_graph(onnx, net, file)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def network(x, t):
        return torch.from_numpy(session.run(None, {"x": x.numpy(), "t": t.numpy()})[0])

    torch.testing.assert_close(samples(network, timesteps="float"), samples(net), rtol=1e-5, atol=1e-5)


def write_graph(onnx: Any, net: Net, file: Path) -> None:
    """`Net` as an ONNX graph, written by hand, since torch's exporter needs more packages."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight, bias = (parameter.detach().numpy() for parameter in (net.layer.weight, net.layer.bias))
    constants = {"weight": weight, "bias": bias, "shape": np.array([-1, 1, 1, 1]), "rate": np.array(1e-3, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["filtered"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["filtered"], ["bounded"]),
        helper.make_node("Reshape", ["t", "shape"], ["column"]),
        helper.make_node("Mul", ["column", "rate"], ["scaled"]),
        helper.make_node("Add", ["bounded", "scaled"], ["out"]),
    ]
    shapes = {"x": ["N", 1, 8, 8], "t": ["N"], "out": ["N", 1, 8, 8]}
    infos = {name: helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()}
    held = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [infos["x"], infos["t"]], [infos["out"]], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(file))
