"""`pycap import-vgg`: a pre-trained VGG of another framework, converted once into a file of pycap's own."""

from __future__ import annotations

import argparse
from pathlib import Path


def import_vgg(args: argparse.Namespace) -> int:
    """Read args.file, write args.output (a .safetensors file, or a folder that the file goes into), say what it holds."""
    from pycap import weights

    source, output = Path(args.file), Path(args.output)
    target = output if output.suffix == ".safetensors" else output / f"{source.stem}.safetensors"
    if target.exists() and source.exists() and target.samefile(source):
        raise weights.WeightsError(f"{target}: is the file to read; give another --output")
    found = weights.load(source)
    weights.save(found, target)
    spec = found.preprocess()
    dense = (
        f"fc6 and fc7 of {len(found.arrays['fc7.bias'])}, for images of {spec.crop}"
        if found.has_dense
        else "no fc6, fc7"
    )
    print(f"{found.cnn} from {source} ({found.source}, sha256 {found.sha256[:16]}...): {dense}")
    print(f"pixels 0..255, RGB, minus {list(found.mean)}, over {list(found.std)}")
    if found.dropped:
        print(f"left out, of no use to a captioner: {', '.join(found.dropped)}")
    print(f"written: {target} (train with --cnn {found.cnn} --vgg-weights {target})")
    return 0
