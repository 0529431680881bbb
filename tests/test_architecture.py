"""The house rules, checked on the source: who imports whom, what may not appear, one name for all rooms of an op."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("pycap", "kernels", "tests", "benchmarks")
MAX_LINES = 500
SOURCE_SUFFIXES = {
    ".py",
    ".cpp",
    ".h",
    ".cu",
    ".cuh",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".txt",
    ".js",
    ".html",
    ".css",
    "",
}

# -- the import table (docs/design.md) --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one room may import: our rooms, other people's packages; at the top of a file, or only inside functions."""

    rooms: frozenset[str] = frozenset()
    lazy_rooms: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    lazy_packages: frozenset[str] = frozenset()


def row(rooms: str = "", lazy_rooms: str = "", packages: str = "numpy", lazy_packages: str = "") -> Row:
    return Row(*(frozenset(names.split()) for names in (rooms, lazy_rooms, packages, lazy_packages)))


CORE = "device memory graphs backends autograd ops"
MODEL = f"{CORE} nn models schedules optim decode"
FILES = "data metrics weights config tensorfile checkpoint distributed"
FULL = f"arena provenance {MODEL} {FILES} captioner training bulk progress signals pages"

TABLE: dict[str, Row] = {
    "kernels": row(packages="triton numpy", lazy_packages="cupy ml_dtypes"),
    "device": row(lazy_packages="cupy ml_dtypes"),
    "memory": row("device", lazy_packages="cupy"),
    "arena": row("device memory"),
    "backends": row(
        "device memory",
        "kernels _cpu _cuda backends.cpp backends.triton backends.cuda",
        lazy_packages="cupy scipy_openblas32",
    ),
    # Each of these is imported lazily: without _cpu, or without a GPU, it is not there.
    "backends.triton": row("device memory backends kernels", lazy_packages="cupy triton"),
    "backends.cuda": row("device memory backends backends.triton", "_cuda _cuda_emu kernels", lazy_packages="cupy"),
    "backends.cpp": row("device memory backends backends.cpp_bf16 backends.cpp_optim _cpu"),
    "backends.cpp_bf16": row("device memory backends _cpu"),
    "backends.cpp_optim": row("device memory backends _cpu"),
    # Captures work that is given to it, and knows no kernel (docs/decisions/0013-captured-steps.md).
    "graphs": row("device memory", packages=""),
    "autograd": row("memory"),
    "provenance": row("device backends", lazy_packages="PIL"),
    "ops": row("device memory autograd backends"),
    "nn": row("device memory autograd backends ops"),
    "models": row(f"{CORE} nn"),
    "schedules": row(packages=""),
    "optim": row("device memory autograd backends schedules"),
    "decode": row(f"{CORE} nn models"),
    "data": row(lazy_rooms="backends.cpp", packages="numpy PIL h5py"),
    "metrics": row(lazy_packages="nltk pycocoevalcap"),
    "weights": row("data tensorfile checkpoint", packages="numpy h5py safetensors"),
    "import_vgg": row("weights", packages=""),
    "config": row(packages="", lazy_packages="jsonargparse yaml"),
    "tensorfile": row(),
    "checkpoint": row("config data tensorfile"),
    "distributed": row("device memory autograd backends", lazy_packages="mpi4py cupy"),
    # Builds the GPU kernels' machine code.
    "cubins": row("device memory backends backends.triton kernels"),
    # A trained model with its vocabulary and image preparation (docs/decisions/0005-captioner-and-training.md).
    "captioner": row(f"{MODEL} {FILES}"),
    # The parts of train.py (same decision).
    "progress": row(packages="rich"),
    "signals": row(packages=""),
    # Jobs of captioning: they know items and captions, and no model.
    "bulk": row("data progress signals"),
    "training": row(f"arena {MODEL} {FILES} captioner progress signals pages provenance"),
    "testing": row("device memory autograd backends ops"),
    # The look of pages: text, and nothing else.
    "pages": row(packages=""),
    # What a person decides about captions, kept; knows no page.
    "picking": row("data"),
    # An extra's packages at the top: only `pycap select` and `pycap serve` import the room.
    "web": row(
        "device memory backends data picking captioner caption checkpoint pages progress signals",
        packages="numpy PIL starlette uvicorn h11 python_multipart prometheus_client",
    ),
    # ONNX is a format of files here: nothing of pycap computes with it.
    "export": row("autograd ops nn models data checkpoint captioner", lazy_packages="onnx onnxruntime"),
    "reproduce": row("config data checkpoint device distributed provenance training"),
    "commands": row(lazy_rooms="config data bulk", packages=""),
    "cli": row(
        "commands",
        "train evaluate caption features paper reproduce import_vgg export doctor web config decode distributed",
        packages="",
    ),
    "__main__": row("cli", packages=""),
    # pycap/__init__.py: what its own imports bring along is held down by tests/test_import.py.
    "": row("autograd train evaluate caption captioner config"),
}
TABLE |= {
    name: row(FULL, packages="numpy PIL rich", lazy_packages="h5py nltk pycocoevalcap jsonargparse yaml")
    for name in ("train", "evaluate", "caption", "features", "paper")
}
TABLE["doctor"] = row(FULL, "cubins _cuda", packages="numpy PIL", lazy_packages="rich")

FRAMEWORKS = frozenset(
    ("torch", "torchvision", "tensorflow", "jax", "jaxlib", "flax", "keras", "mxnet", "tinygrad", "chainer", "paddle")
    + ("onnx", "onnxruntime", "openvino", "ncnn")
)

# Where one of them may be imported all the same: ONNX as a format of files, ONNX Runtime to check what was written.
EXCEPTED = {"onnx": ("pycap/export/", "tests/export/"), "onnxruntime": ("pycap/export/check.py",)}

# An op's rooms that have no file, and why.
NO_ROOM: dict[tuple[str, str], str] = {
    ("arithmetic", "header"): "runs on the array module itself, on every backend",
    ("arithmetic", "cpu"): "runs on the array module itself, on every backend",
    ("topk", "docs"): "log_softmax_topk is the decoding side of softmax_xent and stands with it",
    ("topk", "header"): "in softmax_xent.h",
    ("topk", "cpu"): "in softmax_xent.cpp",
}


class Import(NamedTuple):
    """One imported module: dotted name, line, and whether it stands inside a function (or under TYPE_CHECKING)."""

    name: str
    line: int
    lazy: bool


@dataclass
class _Imports(ast.NodeVisitor):
    package: str
    depth: int = 0
    found: list[Import] = field(default_factory=list)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
        self.depth += typing_only
        self.generic_visit(node)
        self.depth -= typing_only

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, node.lineno, self.depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        if base == "__future__":
            return
        self.found += [Import(f"{base}.{alias.name}", node.lineno, self.depth > 0) for alias in node.names]

    def visit_Call(self, node: ast.Call) -> None:
        """``importlib.import_module("x")`` and ``__import__("x")`` import as well."""
        named = ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}
        if named and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            name = node.args[0].value
            self.found.append(
                Import(f"{self.package}{name}" if name.startswith(".") else name, node.lineno, self.depth > 0)
            )
        self.generic_visit(node)


def imports(source: str, path: str) -> list[Import]:
    """Every import in ``source``, relative ones resolved against ``path`` (relative to the repository)."""
    visitor = _Imports(package=".".join(Path(path).parent.parts))
    visitor.visit(ast.parse(source))
    return visitor.found


def room_of(name: str) -> str | None:
    """The room that a dotted name belongs to ("" for pycap itself), or None when it is not the library's."""
    parts = name.split(".")
    if parts[0] == "kernels" or parts[:2] == ["pycap", "kernels"]:
        return "kernels"
    if parts[0] != "pycap":
        return None
    if ".".join(parts[1:3]) in TABLE:
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 and (parts[1] in TABLE or parts[1] in {"_cpu", "_cuda", "_cuda_emu"}) else ""


def check_imports(source: str, path: str) -> list[str]:
    """What in ``source`` breaks the import table or imports a framework outside the peers' folders."""
    problems = []
    library = path.startswith(("pycap/", "kernels/"))
    me = room_of(path.removesuffix(".py").replace("/", ".")) if library else None
    if library and me == "" and path != "pycap/__init__.py":
        return [f"{path}: no row in the import table of tests/test_architecture.py and docs/design.md"]
    for name, line, lazy in imports(source, path):
        top = name.split(".")[0]
        where = f"{path}:{line}"
        framework = top in FRAMEWORKS and not path.startswith(EXCEPTED.get(top, ()))
        if framework and "peers" not in Path(path).parts:
            problems.append(f"{where}: imports {name}: frameworks belong to tests/peers and benchmarks/peers")
        if not library:
            continue
        mine = TABLE[me]
        room = room_of(name)
        if room is not None:
            allowed = mine.rooms | {me} | (mine.lazy_rooms if lazy else frozenset())
            if room not in allowed and not name.startswith("pycap.__"):
                problems.append(f"{where}: {me or 'pycap'} may not import {name}{'' if lazy else ' at its top'}")
        elif top in OURS:
            problems.append(f"{where}: the library may not import {name}")
        elif top not in sys.stdlib_module_names and not framework:
            allowed = mine.packages | (mine.lazy_packages if lazy else frozenset())
            if top not in allowed:
                problems.append(f"{where}: {me or 'pycap'} may not import {name}{'' if lazy else ' at its top'}")
    return problems


# -- what may not appear ----------------------------------------------------------------------------------------------

# Written in halves, so that this file does not hold what it forbids.
_PLACES = ("/wo" + "rk/", "/ro" + "ot/", "/fa" + "rm/", "/tmp/" + "v/", ".lib" + "rary/")
_UNFINISHED = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "NotImple" + "mentedError")
_FORBIDDEN = re.compile("|".join([*map(re.escape, _PLACES), *(rf"\b{word}\b" for word in _UNFINISHED)]))


def check_words(text: str, path: str) -> list[str]:
    """Lines that name a place on one developer's machine, or say that the work is unfinished."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{path}:{n}: holds {found.group()!r}" for n, line in lines for found in _FORBIDDEN.finditer(line)]


def _swallows(handler: ast.ExceptHandler) -> bool:
    return all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in handler.body
    )


def check_code(source: str, path: str) -> list[str]:
    """A missing docstring, a bare ``except``, a swallowed exception, too many lines."""
    tree = ast.parse(source)
    problems = []
    if not ast.get_docstring(tree):
        problems.append(f"{path}: no docstring saying its one job")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"{path}:{node.lineno}: bare except")
        if isinstance(node, ast.ExceptHandler) and _swallows(node):
            problems.append(f"{path}:{node.lineno}: swallows an exception")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            broad = {"Exception", "BaseException"} & {ast.unparse(arg) for arg in node.args}
            if broad:
                problems.append(f"{path}:{node.lineno}: suppresses {broad.pop()}")
    limit = 200 if path == "pycap/autograd.py" else MAX_LINES
    lines = source.count("\n")
    if lines > limit or (limit == 200 and lines == 200):
        problems.append(f"{path}: {lines} lines; it may have {limit}")
    return problems


def check_name(path: str) -> list[str]:
    """File names that say nothing of their contents."""
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "stuff"}
    return [f"{path}: a name that says nothing"] if vague & set(Path(path).with_suffix("").parts) else []


def op_rooms(op: str) -> dict[str, str]:
    """Where the rooms of one op stand."""
    return {
        "docs": f"docs/math/{op}.md",
        "header": f"csrc/include/pycap/{op}.h",
        "cpu": f"csrc/cpu/{op}.cpp",
        "tests": f"tests/ops/test_{op}.py",
    }


def check_op(op: str, present: set[str], exceptions: dict[tuple[str, str], str]) -> list[str]:
    """Rooms of ``op`` that are neither among the files ``present`` nor excepted, and exceptions out of date."""
    problems = []
    for room, path in op_rooms(op).items():
        excepted = (op, room) in exceptions
        if path not in present and not excepted:
            problems.append(f"pycap/ops/{op}.py: {path} is missing")
        if path in present and excepted:
            problems.append(f"pycap/ops/{op}.py: {path} exists, so its exception is out of date")
    return problems


# -- the tree ---------------------------------------------------------------------------------------------------------


def _files(*suffixes: str) -> Iterator[Path]:
    """The repository's own files with these suffixes, relative to its root."""
    tops = ["pycap", "kernels", "csrc", "recipes", "tests", "benchmarks", "docs", ".ci"]
    candidates = [path for top in tops for path in sorted((ROOT / top).rglob("*"))]
    candidates += [path for path in sorted(ROOT.iterdir()) if not path.name.startswith(".git")]
    for path in candidates:
        relative = path.relative_to(ROOT)
        if path.is_file() and path.suffix in suffixes and not {"__pycache__", "local", "results"} & set(relative.parts):
            yield relative


PYTHON = [path.as_posix() for path in _files(".py")]
OPS = [Path(path).stem for path in PYTHON if re.fullmatch(r"pycap/ops/(?!__)\w+\.py", path)]


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_tree_is_found() -> None:
    assert {"pycap/autograd.py", "pycap/backends/__init__.py", "kernels/__init__.py", "tests/conftest.py"} <= set(
        PYTHON
    )
    assert OPS


@pytest.mark.parametrize("path", PYTHON)
def test_file(path: str) -> None:
    source = _read(path)
    problems = check_imports(source, path) + check_code(source, path) + check_name(path)
    assert not problems, "\n".join(problems)


def test_no_forbidden_words() -> None:
    paths = [path.as_posix() for path in _files(*SOURCE_SUFFIXES)]
    problems = [problem for path in paths for problem in check_words(_read(path), path)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("op", OPS)
def test_rooms_of_an_op_share_its_name(op: str) -> None:
    present = {path.as_posix() for path in _files(".py", ".md", ".h", ".cpp")}
    problems = check_op(op, present, NO_ROOM)
    assert not problems, "\n".join(problems)


def test_every_package_is_installed() -> None:
    listed = tomllib.loads(_read("pyproject.toml"))["tool"]["setuptools"]["packages"]
    found = {".".join(Path(path).parent.parts) for path in PYTHON if path.startswith("pycap/")}
    assert sorted(listed) == sorted(found | {"pycap.kernels", "pycap.recipes"})


@pytest.mark.parametrize("path", [p for p in PYTHON if p.endswith("__init__.py") and "| file |" in _read(p)])
def test_a_packages_table_names_all_its_files(path: str) -> None:
    files = {Path(other).name for other in PYTHON if Path(other).parent == Path(path).parent} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", ast.get_docstring(ast.parse(_read(path))) or "")) == files


# -- the checks find what is planted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("pycap/ops/new.py", "import torch", "frameworks belong"),
        ("pycap/ops/new.py", "def f():\n    import jax.numpy", "frameworks belong"),
        ("tests/ops/test_new.py", "from tensorflow import keras", "frameworks belong"),
        ("pycap/train.py", "import importlib\nimportlib.import_module('torch.nn')", "frameworks belong"),
        ("pycap/captioner.py", "def f():\n    import onnx", "frameworks belong"),
        ("pycap/export/folder.py", "def f():\n    import onnxruntime", "frameworks belong"),
        ("pycap/export/folder.py", "import onnx", "at its top"),
        ("pycap/autograd.py", "from pycap.ops import conv2d", "may not import pycap.ops.conv2d"),
        ("pycap/autograd.py", "from .ops import conv2d", "may not import pycap.ops.conv2d"),
        ("pycap/autograd.py", "from . import ops", "may not import pycap.ops"),
        ("pycap/nn/linear.py", "from ..models import vgg", "may not import pycap.models.vgg"),
        ("pycap/models/nic.py", "from pycap.captioner import X", "may not import pycap.captioner"),
        ("pycap/data/coco.py", "from pycap import autograd", "may not import pycap.autograd"),
        ("pycap/data/coco.py", "def f():\n    from pycap.autograd import Tensor", "may not import pycap.autograd"),
        ("pycap/backends/__init__.py", "import pycap._cpu", "at its top"),
        ("pycap/backends/weights.py", "from pycap import kernels", "at its top"),
        ("pycap/backends/reference.py", "from pycap import _cpu", "at its top"),
        ("pycap/backends/reference.py", "import h5py", "may not import h5py"),
        ("pycap/memory.py", "import cupy", "at its top"),
        ("pycap/cli.py", "from pycap import train", "at its top"),
        ("pycap/train.py", "from pycap.caption import main", "may not import pycap.caption"),
        ("pycap/train.py", "from pycap.testing import gradcheck", "may not import pycap.testing"),
        ("pycap/train.py", "from tests.naive import conv2d", "the library may not import"),
        ("pycap/ops/new.py", "import pandas", "may not import pandas"),
        ("kernels/conv2d.py", "from pycap import memory", "may not import pycap.memory"),
        ("kernels/conv2d.py", "if True:\n    import cupy", "at its top"),
        ("pycap/shed.py", "import os", "no row in the import table"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str, said: str) -> None:
    problems = check_imports(source, path)
    assert len(problems) == 1
    assert said in problems[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tests/peers/test_ops.py", "import torch"),
        ("benchmarks/peers/torch_joint.py", "import torch.nn"),
        ("pycap/memory.py", "def f():\n    import cupy"),
        ("pycap/backends/__init__.py", "def f():\n    from pycap import _cpu, kernels"),
        ("pycap/cli.py", "def f():\n    from pycap.train import main"),
        ("pycap/nn/__init__.py", "from .linear import Linear\nfrom pycap.ops import linear\nimport math"),
        ("pycap/export/folder.py", "def f():\n    import onnx.checker"),
        ("pycap/checkpoint/versions.py", "from pycap import __version__"),
        ("tests/test_train.py", "from pycap.testing import gradcheck\nimport pandas"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    assert check_imports(source, path) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n", "no docstring"),
        ('"""Job."""\ntry:\n    f()\nexcept ValueError:\n    pass\n', "swallows"),
        ('"""Job."""\ntry:\n    f()\nexcept ValueError:\n    ...\n', "swallows"),
        ('"""Job."""\ntry:\n    f()\nexcept:\n    raise\n', "bare except"),
        ('"""Job."""\nwith contextlib.suppress(Exception):\n    f()\n', "suppresses Exception"),
        ('"""Job."""\n' + "x = 1\n" * MAX_LINES, f"{MAX_LINES + 1} lines"),
    ],
)
def test_forbidden_code_is_found(source: str, said: str) -> None:
    problems = check_code(source, "pycap/ops/new.py")
    assert len(problems) == 1
    assert said in problems[0]


def test_autograd_has_a_limit_of_its_own() -> None:
    assert check_code('"""Job."""\n' + "x = 1\n" * 198, "pycap/autograd.py") == []
    assert check_code('"""Job."""\n' + "x = 1\n" * 199, "pycap/autograd.py") == [
        "pycap/autograd.py: 200 lines; it may have 200"
    ]


@pytest.mark.parametrize("word", [*_PLACES, *_UNFINISHED])
def test_a_forbidden_word_is_found(word: str) -> None:
    assert check_words(f"fine\nsee {word} here\n", "docs/x.md") == [f"docs/x.md:2: holds {word!r}"]


@pytest.mark.parametrize("path", ["pycap/utils.py", "pycap/helpers/x.py", "tests/misc.py"])
def test_a_vague_name_is_found(path: str) -> None:
    assert check_name(path) == [f"{path}: a name that says nothing"]


def test_a_missing_room_is_found() -> None:
    present = set(op_rooms("relu").values())
    assert check_op("relu", present, {}) == []
    assert check_op("relu", present - {"tests/ops/test_relu.py"}, {}) == [
        "pycap/ops/relu.py: tests/ops/test_relu.py is missing"
    ]
    assert check_op("relu", present - {"csrc/cpu/relu.cpp"}, {("relu", "cpu"): "reason"}) == []
    assert "out of date" in check_op("relu", present, {("relu", "cpu"): "reason"})[0]
