"""provenance.jsonl: what it tells of each start, that it is cheap, holds no secret, and outlives a kill; reading it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import pycap
from pycap import config as configuration
from pycap import provenance as facts
from pycap.training import provenance
from pycap.training.provenance import NAME, ProvenanceError
from tests.lockstep import Lockstep, together
from tests.train.runs import lines, tiny


def test_a_run_tells_with_what_it_began(trained: Path, data: Path) -> None:
    (record,) = provenance.read(trained)
    assert record == lines(trained / NAME)[0]
    assert record["step"] == 0 and record["position"]["epoch"] == 0
    assert record["seed"] == 123
    assert record["config"] == configuration.to_dict(configuration.load(trained / "config.yaml"))
    assert record["pycap"]["version"] == pycap.__version__
    assert record["packages"]["numpy"] == np.__version__ and "libjpeg-turbo" in record["packages"]
    kernels = record["kernels"]
    assert kernels["device"] == "cpu" and kernels["threads"] == 1 and kernels["isa"] in ("v1", "v3", "v4", "native")
    assert "conv2d_forward" in kernels["serves"]["cpp"]
    assert record["data"]["folders"] == [str(data.resolve())] and record["data"]["digest"].startswith("24 + 10 images")
    assert record["ranks"] == {"size": 1, "others": []} and record["files"] == {}
    assert len(record["weights"]) == 64


def test_going_on_adds_a_record_with_its_step(data: Path, tmp_path: Path) -> None:
    run = pycap.train(tiny(data, tmp_path / "run", max_steps=2)).folder
    pycap.train(tiny(data, run, max_steps=4, resume=run))
    first, second = provenance.read(run)
    assert (first["step"], second["step"]) == (0, 2)
    assert second["position"]["batch"] == 2 and first["weights"] != second["weights"]
    assert second["config"]["max_steps"] == 4 and first["config"]["max_steps"] == 2


def test_a_run_that_has_none_goes_on(data: Path, tmp_path: Path) -> None:
    run = pycap.train(tiny(data, tmp_path / "run", max_steps=2)).folder
    (run / NAME).unlink()
    pycap.train(tiny(data, run, max_steps=3, resume=run))
    (only,) = provenance.read(run)
    assert only["step"] == 2


def test_what_else_is_read_is_told(data: Path, trained: Path, tmp_path: Path) -> None:
    run = pycap.train(tiny(data, tmp_path / "run", init_from=trained, max_steps=1)).folder
    (record,) = provenance.read(run)
    told = record["files"]["init_from"]
    assert told["path"] == str((trained / "best").resolve())
    assert told["weights"] == record["weights"]  # it began with them


def test_a_torn_line_is_no_record_and_goes_at_the_next(tmp_path: Path, trained: Path) -> None:
    whole = (trained / NAME).read_bytes()
    for torn in (whole[: len(whole) // 2], whole[:-1], b""):
        (tmp_path / NAME).write_bytes(torn)
        assert provenance.read(tmp_path) == []
    for torn in (whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / NAME).write_bytes(whole + torn)
        provenance.append(tmp_path, json.loads(whole) | {"step": 7})
        assert [record["step"] for record in provenance.read(tmp_path)] == [0, 7]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 2 is no JSON"),
        (b"\xff", "line 2 is no JSON"),
        (b"[" * 100_000, "line 2 is no JSON"),
        (b"[]", "line 2 is no record of a run"),
        (b'{"format": "x"}', "line 2 is no record of a run"),
        (
            b'{"format": "pycap-provenance", "version": 2, "pycap": {"version": "9.1"}}',
            "the pycap that wrote it \\(9.1\\)",
        ),
        (
            b'{"format": "pycap-provenance", "version": 2, "pycap": 3}',
            "is of version 2, and this pycap reads version 1",
        ),
        (b'{"format": "pycap-provenance", "version": 1}', "line 2: time: None is not what a run writes"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, trained: Path, line: bytes, says: str) -> None:
    (tmp_path / NAME).write_bytes((trained / NAME).read_bytes() + line + b"\n")
    with pytest.raises(ProvenanceError, match=f"{NAME}: {says}|{says}"):
        provenance.read(tmp_path)


def test_secrets_are_not_told() -> None:
    told = facts.environment(
        {
            "PYCAP_TOKEN": "x",
            "PYCAP_API_KEY": "x",
            "PYCAP_ISA": "v3",
            "OMP_NUM_THREADS": "2",
            "HOME": "x",
            "AWS_SECRET": "x",
        }
    )
    assert told == {"OMP_NUM_THREADS": "2", "PYCAP_ISA": "v3"}


def test_commit_and_changes_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *options, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert facts.checkout(tmp_path) == (None, None)
    git("init", "-q")
    assert facts.checkout(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "a")
    assert facts.checkout(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("b")
    assert facts.checkout(tmp_path) == (git("rev-parse", "HEAD"), True)
    (tmp_path / "inner").mkdir()  # as a wheel that is installed below somebody's checkout
    assert facts.checkout(tmp_path / "inner") == (None, None)


def test_the_digest_of_weights_sees_each_bit_and_no_layout() -> None:
    large = np.arange((16 << 20) // 4 + 3, dtype=np.float32)  # over a block
    arrays = {
        "b": large,
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros(0, np.float32),
        "step": np.array(3),
    }
    digest = provenance.weights_digest(arrays)
    assert provenance.weights_digest({**dict(reversed(arrays.items())), "a": np.asfortranarray(arrays["a"])}) == digest
    for name, other in {
        "b": np.where(large == large[-1], np.nextafter(large, 0), large),
        "a": arrays["a"].reshape(3, 2),
        "step": np.array(4),
        "empty": np.zeros(0, np.float64),
    }.items():
        assert provenance.weights_digest({**arrays, name: other}) != digest, name


def test_what_ranks_have_otherwise_is_told_once() -> None:
    def part(ranks: Lockstep) -> list[dict[str, object]]:
        own = {"machine": {"host": f"node{ranks.rank // 2}", "cpus": 8, **({"gpu": 1} if ranks.rank == 2 else {})}}
        first, *others = ranks.each(own)
        return [provenance._differing(first, other) for other in others]

    assert together(3, part)[1] == [{}, {"machine.host": "node1", "machine.gpu": 1}]
