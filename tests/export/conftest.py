"""For the tests of exported models: skipped where onnx is missing; the kernels that they would have had afterwards."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pycap import backends
from tests.export.models import photographs

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("onnx") is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason='onnx is not installed: pip install "pycap-captioning[onnx]"'))


@pytest.fixture(autouse=True)
def _selection() -> Iterator[None]:
    with backends.use("auto"):
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return photographs(tmp_path_factory.mktemp("images"))


@pytest.fixture
def onnxruntime_standin(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx's own evaluator in ONNX Runtime's place, for as much of it as the example and the export's check use."""
    from onnx.reference import ReferenceEvaluator

    standin: Any = ModuleType("onnxruntime")
    standin.__spec__, standin.__version__ = ModuleSpec("onnxruntime", None), "0"
    standin.InferenceSession = lambda path, providers: ReferenceEvaluator(str(path))
    monkeypatch.setitem(sys.modules, "onnxruntime", standin)
