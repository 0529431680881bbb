"""Files that are made to harm who reads them: refused, with the file named, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycap import checkpoint
from pycap import config as configuration
from pycap.checkpoint import CheckpointError
from pycap.checkpoint.layout import LIMITS
from pycap.config import ConfigError
from pycap.tensorfile import HEADER_LIMIT, TensorFileError, map_arrays
from tests.train.checkpoints import save, vouch, whole

pytestmark = pytest.mark.faults


def tensor_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: Any = 0, end: Any = 4, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def repeated(part: bytes, end: bytes = b"") -> bytes:
    """As much of it as a header may hold."""
    return part * ((HEADER_LIMIT - len(end)) // len(part)) + end


HUGE = 2**63
HEADERS: dict[str, tuple[object, str]] = {
    "deep lists": (repeated(b"["), "RecursionError"),
    "deep objects": (repeated(b'{"a":'), "RecursionError"),
    "deep within an array": (b'{"a":{"dtype":' + repeated(b"[")[:900_000], "RecursionError"),
    "many lists": (b'{"a":[' + repeated(b"[],")[:999_999] + b"[]]}", "a has not dtype, shape"),
    "many objects": (b'{"a":[' + repeated(b"{},")[:999_999] + b"{}]}", "a has not dtype, shape"),
    "many names": (b"{" + b",".join(b'"%d":0' % i for i in range(80_000)) + b"}", "0 has not dtype, shape"),
    "many digits": (b'{"a":' + b"9" * 1_000_000 + b"}", "Exceeds the limit"),
    "huge numbers": ({"a": entry(shape=[10**4000] * 30)}, "larger than any memory"),
    "huge offsets": ({"a": entry(10**4000, 10**4001)}, r"a, F32 .*is said to lie in bytes 10{59}\.\.\. \(4001 characters\)"),
    "a product of sides": ({"a": entry(shape=[2**31, 2**31, 2**31])}, "larger than any memory"),
    "a product that comes round to 4 bytes": ({"a": entry(shape=[2**32, 2**32, 1])}, "larger than any memory"),
    "no elements of huge sides": ({"a": entry(0, 0, [0, HUGE, HUGE])}, "larger than any memory"),
    "many dimensions": ({"a": entry(shape=[1] * 33)}, "33 dimensions; 2 and at most 32"),
    "a long name": ({"n" * 900_000: 1}, r"n{60}\.\.\. \(900000 characters\) has not dtype"),
    "a name of many lines": ({"a\n\x1b[31mb": 1}, r"'a\\n\\x1b\[31mb' has not dtype"),
    "true for a side": ({"a": entry(shape=[True])}, "whole numbers from 0"),
    "a float for a side": ({"a": entry(shape=[1.0])}, "whole numbers from 0"),
    "text for a side": ({"a": entry(shape=["1"])}, "whole numbers from 0"),
    "no number for a side": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', "whole numbers from 0"),
    "no end to a side": (b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', "whole numbers from 0"),
    "a negative side": ({"a": entry(shape=[-1])}, "whole numbers from 0"),
    "negative offsets": ({"a": entry(-4, 0)}, "whole numbers from 0"),
    "floats for offsets": ({"a": entry(0.0, 4.0)}, "whole numbers from 0"),
    "true for an offset": ({"a": entry(False, 4)}, "whole numbers from 0"),
    "a shape that is a number": ({"a": entry(shape=4)}, "whole numbers from 0"),
    "a shape that is text": ({"a": entry(shape="4")}, "whole numbers from 0"),
    "three offsets": ({"a": entry() | {"data_offsets": [0, 2, 4]}}, "3 offsets"),
    "a dtype that is a list": ({"a": entry(dtype=["F32"])}, "is of dtype"),
    "offsets that overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, "b, .*bytes 2 to 6, after 4"),
    "offsets turned round": ({"a": entry(4, 0)}, "a, .*bytes 4 to 0"),
    "a hole": ({"a": entry(0, 4), "b": entry(8, 12)}, "b, .*after 4"),
    "more than the file": ({"a": entry(0, 2**40, [2**38])}, "take 1099511627776 bytes, and it holds 12"),
    "a name twice": (b'{"a":{},"b":1,"a":{}}', "a stands in it twice"),
    "offsets twice": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}', "stands in it twice"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', "__metadata__ stands in it twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "__metadata__ is no text"),
    "metadata that is a list": ({"__metadata__": ["a"]}, "__metadata__ is no text"),
    "another key": ({"a": entry() | {"pickle": "x"}}, "a has not dtype, shape and data_offsets"),
    "no UTF-8": (b'{"\xff": 1}', "UnicodeDecodeError"),
    "half a surrogate": (b'{"\\ud800": 1}', r"'\\ud800' has not dtype"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    header, said = HEADERS[name]
    with pytest.raises(TensorFileError, match=said) as caught:
        map_arrays(tensor_file(tmp_path / "a", header, b"0" * 12))
    text = str(caught.value)
    assert len(text) < 500 and text.isprintable()


def test_as_many_arrays_as_a_header_holds(tmp_path: Path) -> None:
    header = {str(i): entry(0, 0, [0]) for i in range(15_000)}
    arrays, _ = map_arrays(tensor_file(tmp_path / "a", header))
    assert len(arrays) == 15_000


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    with pytest.raises(TensorFileError, match="the header of 2000 arrays has"):
        save(tmp_path / "last", 2, model={"n" * 500 + str(i): np.zeros(1) for i in range(2000)})
    with pytest.raises(TensorFileError, match="w is of dtype complex128"):
        save(tmp_path / "last", 2, model={"w": np.zeros(1, complex)})
    assert whole(tmp_path / "last") == 1 and [path.name for path in tmp_path.iterdir()] == ["last"]


# Over what the interpreter with pycap.checkpoint has before the first file, by reader.
ALLOWED_MIB = {"tensorfile": 40, "checkpoint": 128, "config": 40, "vocab": 40}

_READER = """
import json, resource, sys
from benchmarks.machine import forget_peak, peak_mib
from pycap import checkpoint, config, tensorfile
import yaml
from pycap.data.vocab import Vocabulary
READERS = {"tensorfile": tensorfile.map_arrays, "checkpoint": checkpoint.load, "config": config.load, "vocab": Vocabulary.load}
forget_peak()
base = peak_mib()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for reader, path in json.load(sys.stdin):
    forget_peak()
    try:
        READERS[reader](path)
        said = "read"
    except MemoryError:
        said = "MemoryError"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([path, said, peak_mib() - base]))
"""


def test_hostile_files_take_bounded_memory(tmp_path: Path) -> None:
    """All of them in one process, which may not map more than it is allowed: peaks are measured, and no file kills it."""
    cases: list[tuple[str, Path, str]] = []
    for number, (header, _) in enumerate(HEADERS.values()):
        cases.append(("tensorfile", tensor_file(tmp_path / f"{number}", header, b"0" * 12), "TensorFileError"))
    cases.append(
        ("tensorfile", tensor_file(tmp_path / "arrays", {str(i): entry(0, 0, [0]) for i in range(15_000)}), "read")
    )
    with open(tensor_file(tmp_path / "big header", b""), "r+b") as file:
        file.write((100_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    cases.append(("tensorfile", tmp_path / "big header", "OSError|TensorFileError"))
    for name in LIMITS:
        save(tmp_path / name / "last", 1)
        with open(tmp_path / name / "last" / name, "r+b") as file:
            file.truncate(2 << 30)
        cases.append(("checkpoint", tmp_path / name / "last", "CheckpointError"))
    for name, part in (("state.json", b"[],"), ("vocab.json", b"[],"), ("config.yaml", b"[")):
        folder = tmp_path / f"deep {name}" / "last"
        save(folder, 1)
        (folder / name).write_bytes(b"[" + part * ((LIMITS[name] - 1) // len(part)))
        vouch(folder)
        cases.append(("checkpoint", folder, "CheckpointError"))
    for number, text in enumerate(("[" * 60_000, "x" * (2 << 20), laughs())):
        (tmp_path / f"{number}.yaml").write_text(text)
        cases.append(("config", tmp_path / f"{number}.yaml", "ConfigError"))
    (tmp_path / "deep.json").write_text("[" * (1 << 20))
    cases.append(("vocab", tmp_path / "deep.json", "DataError"))
    done = subprocess.run(
        [sys.executable, "-c", _READER, str(2 * max(ALLOWED_MIB.values()))],
        input=json.dumps([(reader, str(path)) for reader, path, _ in cases]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(cases)
    for (path, said, peak), (reader, _, expected) in zip(told, cases, strict=True):
        assert said.partition(":")[0] in expected.split("|"), (path, said[:300])
        print(f"{peak:6.1f} MiB  {Path(path).relative_to(tmp_path)}: {said[:100]}")
        assert len(said) < 1000 and peak < ALLOWED_MIB[reader], (path, said[:300], peak)


def laughs() -> str:
    """A text of a kilobyte that would be a thousand million values."""
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(), r"\*a0: write the value itself"),
        ("seed: &s 1\nepochs: *s", r"\*s: write the value itself"),
        ("seed: 1\nepochs: 2\nseed: 3", "seed stands in it twice"),
        ("[" * 50_000, "more than 20 deep"),
        ("seed: " + "9" * 50_000, "not readable as YAML: Exceeds the limit"),
        ("seed: 2001-99-99", "not readable as YAML: month must be"),
        ("seed: !!python/object/apply:os.system [exit 1]", "could not determine a constructor"),
        ("!!python/object:pycap.config.TrainConfig {}", "could not determine a constructor"),
        ("seed: 1\n" + "#" * 70_000, "more than 65536 bytes"),
    ],
)
def test_hostile_options_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.yaml: .*{said}"):
        configuration.load(tmp_path / "config.yaml")


def test_own_options_need_no_names_for_values() -> None:
    """Where one list stands in two places PyYAML would write an anchor and an alias, which are not read."""
    channels = [1.0, 2.0, 3.0]
    text = configuration.to_yaml(configuration.TrainConfig(), {"preprocess": {"mean": channels, "std": channels}})
    assert "&" not in text and "*" not in text


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("state.json", lambda text: text.replace('"state"', '"save_id": "x", "state"'), "save_id stands in it twice"),
        ("state.json", lambda text: "[" * 100_000, "not JSON .*recursion"),
        ("state.json", lambda text: '{"format": ' + "9" * 5000 + "}", "not JSON .*Exceeds the limit"),
        ("state.json", lambda text: text + " " * LIMITS["state.json"], "bytes, and no more than 1048576 are read"),
        ("vocab.json", lambda text: "[" * 100_000, "no JSON that can be read"),
        ("vocab.json", lambda text: text + " " * LIMITS["vocab.json"], "bytes, and no more than 4194304 are read"),
        ("config.yaml", lambda text: "[" * 60_000 + "\n...\n", "more than 20 deep"),
        ("config.yaml", lambda text: text + "#" * LIMITS["config.yaml"], "bytes, and no more than 65536 are read"),
        ("SHA256SUMS", lambda text: text * 10, "bytes, and no more than 1024 are read"),
    ],
)
def test_hostile_texts_with_right_checksums_are_refused(
    tmp_path: Path, name: str, change: Callable[[str], str], said: str
) -> None:
    save(tmp_path / "last", 1)
    path = tmp_path / "last" / name
    path.write_text(change(path.read_text()))
    if name != "SHA256SUMS":
        vouch(tmp_path / "last")
    with pytest.raises(CheckpointError, match=rf"{name}: .*{said}"):
        checkpoint.load(tmp_path / "last")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    for name in ("model.safetensors", "optimizer.safetensors", *LIMITS):
        save(tmp_path / "last", 1)
        (tmp_path / "last" / name).unlink()
        os.mkfifo(tmp_path / "last" / name)
        with pytest.raises(CheckpointError, match=rf"{name}: missing"):
            checkpoint.load(tmp_path / "last", optimizer=True)
        os.unlink(tmp_path / "last" / name)
