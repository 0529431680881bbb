"""Machine code built ahead: what is declared, what a bundle covers, and options that make no sense."""

from __future__ import annotations

import importlib.util

import pytest

from pycap import cubins, device
from pycap.backends import triton
from pycap.backends.triton import launching

pytestmark = pytest.mark.triton
_compile, _store = (launching.kernel_module(name) for name in ("_compile", "_store"))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty place for bundles; sources are not read from there."""
    monkeypatch.setattr(_store, "source_digest", lambda module: f"digest of {module}")
    monkeypatch.setattr(_store, "HERE", tmp_path)
    _store._bundle.cache_clear()
    yield tmp_path / "cubins"
    _store._bundle.cache_clear()


def test_coverage_counts_what_is_there(folder):
    declared = cubins.variants("sm_80")
    assert cubins.coverage("sm_86") == (0, len(declared))
    assert cubins.coverage("sm_103") == (0, len(declared))
    code = _compile.Compiled(b"code", "kernel", 0, 128, 2)
    _store.write_bundle(folder / "sm_80.zip", {variant.key("sm_80"): code for variant in declared[1:]})
    _store._bundle.cache_clear()
    assert cubins.coverage("sm_89") == cubins.coverage("sm_80") == (len(declared) - 1, len(declared))
    assert cubins.coverage("sm_90")[0] == 0


def test_bundles_of_the_same_code_are_the_same_bytes(tmp_path):
    code = {name: _compile.Compiled(name.encode(), "kernel", 0, 128, 2) for name in ("sm_90-b.f-1", "sm_90-a.f-2")}
    first, second = tmp_path / "one.zip", tmp_path / "two.zip"
    _store.write_bundle(first, code)
    _store.write_bundle(second, dict(reversed(code.items())))
    assert first.read_bytes() == second.read_bytes()


def test_every_primitive_has_kernels_that_are_built_ahead():
    kernels = {variant.kernel.name for variant in cubins.variants("sm_90")}
    assert all(any(name.startswith(f"{op}.") for name in kernels) for op in ("cast", "dropout", "embedding"))
    float16 = cubins.variants("sm_90", float16=True)
    assert float16 and all("bf16" not in dict(variant.types).values() for variant in float16)


def test_float16_is_for_checking_only(capsys):
    with pytest.raises(SystemExit):
        cubins.main(["--float16"])
    assert "--float16 goes with --check" in capsys.readouterr().err


def test_a_backend_without_code_and_compiler_says_so(folder, monkeypatch):
    """Before any array is on its way, so that "auto" can take the CPU."""
    monkeypatch.setattr(device, "obstacle", lambda: "")
    for name, value in (("interpreting", False), ("arch", "sm_89")):
        monkeypatch.setattr(launching, name, lambda value=value: value)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    with pytest.raises(
        ImportError, match="carries no kernels for sm_80, and Triton is not installed: pip install triton"
    ):
        triton.check()
    _store.write_bundle(folder / "sm_80.zip", {"sm_80-cast.forward-1": _compile.Compiled(b"code", "kernel", 0, 128, 2)})
    _store._bundle.cache_clear()
    triton.check()
    monkeypatch.setattr(device, "obstacle", lambda: "no GPU here")
    with pytest.raises(ImportError, match="no GPU here"):
        triton.check()
