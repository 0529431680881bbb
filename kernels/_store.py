"""Where compiled kernels are kept: prebuilt in `cubins/sm_NN.zip` beside this file, and the user's cache on disk.

A variant's key covers the source of its kernel (its file and the device functions that it imports), its types, constants,
warps, stages and architecture, so that code of another version is never taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zipfile
from functools import cache
from pathlib import Path

from ._compile import Compiled

HERE = Path(__file__).resolve().parent


def cache_folder() -> Path:
    """$PYCAP_CACHE, else pycap/ in the user's cache folder."""
    named = os.environ.get("PYCAP_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "pycap"


@cache
def source_digest(module: str) -> str:
    """A digest of what kernels/<module>.py compiles from: its text, and that of the files here that it imports."""
    digest, todo, seen = hashlib.sha256(), [module], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            text = (HERE / f"{name}.py").read_text(encoding="utf-8")
            digest.update(text.encode())
            todo += re.findall(r"^from \.(\w+) import", text, re.MULTILINE)
    return digest.hexdigest()[:16]


def key(kernel: str, variant: str, arch: str) -> str:
    """The name under which a variant is stored. variant: everything that tells it from the kernel's others."""
    digest = hashlib.sha256(f"{source_digest(kernel.split('.')[0])} {variant}".encode()).hexdigest()[:24]
    return f"{arch}-{kernel}-{digest}"


@cache
def _bundle(arch: str) -> zipfile.ZipFile | None:
    path = HERE / "cubins" / f"{arch}.zip"
    return zipfile.ZipFile(path) if path.is_file() else None


def bundled(arch: str) -> frozenset[str]:
    """Keys of the prebuilt variants for an architecture."""
    bundle = _bundle(arch)
    return (
        frozenset(n.removesuffix(".json") for n in bundle.namelist() if n.endswith(".json")) if bundle else frozenset()
    )


def load(name: str) -> Compiled | None:
    """The variant stored under a key, or None."""
    bundle = _bundle(name.split("-")[0])
    if bundle is not None and name in bundled(name.split("-")[0]):
        return _compiled(bundle.read(f"{name}.cubin"), bundle.read(f"{name}.json"))
    path = cache_folder() / f"{name}.json"
    try:
        return _compiled(path.with_suffix(".cubin").read_bytes(), path.read_bytes())
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
    ):  # not there, or half of it, or of another version: it is compiled again
        return None


def _compiled(cubin: bytes, facts: bytes) -> Compiled:
    known = json.loads(facts)
    known["descriptors"] = tuple((tuple(box), swizzle) for box, swizzle in known["descriptors"])
    return Compiled(cubin, **known)


def save(name: str, compiled: Compiled) -> None:
    """Keep a variant in the user's cache: each file whole or not at all. A folder that cannot be written costs a warning."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, data in ((".cubin", compiled.cubin), (".json", json.dumps(compiled.facts()).encode())):
            part = folder / f"{name}{suffix}.{os.getpid()}"
            part.write_bytes(data)
            part.replace(folder / f"{name}{suffix}")
    except OSError as error:
        print(f"pycap: compiled kernels are not kept ({error}); set PYCAP_CACHE to a folder of yours", file=sys.stderr)


def write_bundle(path: Path, variants: dict[str, Compiled]) -> None:
    """Write prebuilt variants as a zip file; equal variants give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bundle:
        for name, compiled in sorted(variants.items()):
            for suffix, data in ((".cubin", compiled.cubin), (".json", json.dumps(compiled.facts()).encode())):
                entry = zipfile.ZipInfo(f"{name}{suffix}")
                entry.compress_type = zipfile.ZIP_DEFLATED
                bundle.writestr(entry, data)
    part.replace(path)
