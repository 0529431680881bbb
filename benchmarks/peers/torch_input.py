"""The input pipeline as PyTorch users write it: torchvision's folder of images and transforms, read by a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

try:
    import torchvision
    from torchvision import datasets, transforms
except ImportError:
    torchvision = None

#: What the rows call it.
NAME = f"torchvision {torchvision.__version__}" if torchvision else "torchvision's PIL calls (it is not installed)"


class _Resized:
    """What torchvision's Resize and PILToTensor come to, where it is not installed."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> torch.Tensor:
        small = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.as_tensor(np.array(small, copy=True)).permute(2, 0, 1)


def transform(size: int):
    """PIL image -> uint8 [3, size, size]."""
    if torchvision is None:
        return _Resized(size)
    return transforms.Compose([transforms.Resize((size, size)), transforms.PILToTensor()])


class _Files(Dataset):
    """torchvision's ImageFolder, where it is not installed: opened and made RGB in the same way."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.transform = transform(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[index], "rb") as file:
            return self.transform(Image.open(file).convert("RGB")), 0


class _WithCrops(Dataset):
    """The images of another data set, each with where to crop it and whether to mirror it, which the device does."""

    def __init__(self, images: Dataset, room: int) -> None:
        self.images, self.room = images, room

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        crop = torch.cat([torch.randint(self.room + 1, (2,)), torch.randint(2, (1,))])
        return self.images[index][0], crop


class Pipeline:
    """Batches of the images below `folder` (in folders of classes), shuffled; the workers stay between epochs."""

    def __init__(self, folder: Path, size: int, crop: int, batch_size: int, workers: int) -> None:
        torch.set_num_threads(1)
        images = datasets.ImageFolder(folder, transform(size)) if torchvision else _Files(folder, size)
        self._loader = DataLoader(
            _WithCrops(images, size - crop),
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def epoch(self) -> Iterator[int]:
        """How many images each batch of an epoch holds."""
        for images, crops in self._loader:
            assert images.dtype == torch.uint8 and crops.shape == (len(images), 3)
            yield len(images)


def pixels(path: Path, size: int) -> np.ndarray:
    """uint8 [size, size, 3] of one file."""
    with open(path, "rb") as file:
        return transform(size)(Image.open(file).convert("RGB")).permute(1, 2, 0).numpy()
