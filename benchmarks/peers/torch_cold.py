"""A fresh PyTorch process that captions one image: python -m benchmarks.peers.torch_cold FOLDER (torch_side writes it)."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.peers.torch_model import NIC, VGG, beam_search


def main(folder: Path) -> float:
    """The log-probability of the best caption. The fastest way to load: no initial weights, the file mapped, not copied."""
    settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    with torch.device("meta"):
        model = NIC(VGG(**settings["cnn"]), **settings["nic"])
    model.load_state_dict(torch.load(folder / "model.pt", mmap=True, weights_only=True), assign=True)
    model.eval()
    size, crop = settings["resize"], settings["cnn"]["image_size"]
    with Image.open(folder / "image.png") as file:
        pixels = np.asarray(file.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    edge = (size - crop) // 2
    window = torch.from_numpy(pixels[edge : edge + crop, edge : edge + crop].copy()).permute(2, 0, 1).float()[None]
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        _, scores = beam_search(model, (window - mean) / std, **settings["search"])
    return float(scores[0, 0])


if __name__ == "__main__":
    print(main(Path(sys.argv[1])), flush=True)
