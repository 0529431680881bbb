"""Imported VGGs against torchvision's construction in PyTorch: files that torch.save writes, features to 1e-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")
from torch import nn

from pycap import ops, weights
from pycap.autograd import no_grad
from pycap.models.vgg import BLOCKS, VGG

pytestmark = pytest.mark.peers
SIZE, WIDTH, FC = 64, 0.125, 24


class TorchVGG(nn.Module):
    """torchvision.models.vgg's modules under its names, narrower, for images of SIZE."""

    def __init__(self, cnn: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for block in BLOCKS[cnn]:
            for channels in block:
                outputs = max(8, round(channels * WIDTH / 8) * 8)
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        side = SIZE // 2 ** len(BLOCKS[cnn])
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(inputs * side * side, FC), nn.ReLU(True), nn.Dropout(),
            nn.Linear(FC, FC), nn.ReLU(True), nn.Dropout(), nn.Linear(FC, 10),
        )  # fmt: skip

    def fc7(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(self.avgpool(self.features(images)), 1)
        return self.classifier[:5](x)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("cnn", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_features_are_torchs(tmp_path: Path, cnn: str, zipped: bool) -> None:
    torch.manual_seed(11)
    peer = TorchVGG(cnn).eval()
    for layer in peer.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias, std=0.1)
    torch.save(peer.state_dict(), tmp_path / "vgg.pth", _use_new_zipfile_serialization=zipped)
    found = weights.load(tmp_path / "vgg.pth")
    assert (found.cnn, found.source) == (cnn, "torchvision-pth")

    images = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        want = peer.fc7((scaled - mean) / std).numpy()

    model = VGG(cnn, SIZE, None, width=WIDTH, fc_size=FC)
    model.load_arrays(dict(found.arrays))
    model.train(False)
    spec = found.preprocess()
    with no_grad():
        got = model(ops.pixels(images, np.zeros((3, 3), np.int32), spec.crop, spec.mean, spec.std, np.float32)).data
    assert (want > 0).mean() > 0.2
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_state_dicts_of_each_dtype_read_as_torch_reads_them(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    from pycap.weights import pickled

    whole = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    state = {"whole": whole, "turned": whole.T, "part": whole[2:4, 1:5], "parameter": nn.Parameter(whole + 1)}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = pickled.read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(state)
    for name, array in found.items():
        np.testing.assert_array_equal(array.astype(np.float64), state[name].detach().double().numpy(), err_msg=name)


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(weights.WeightsError, match="asks for torch.nn.modules.linear.Linear"):
        weights.load(tmp_path / "module.pth")
