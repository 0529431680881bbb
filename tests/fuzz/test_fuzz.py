"""Two hundred files that nobody meant, and the hostile ones, for every reader; and the watch finds what is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import watch
from tests.fuzz.binary_readers import BINARY
from tests.fuzz.target import Target
from tests.fuzz.text_readers import TEXT
from tests.fuzz.weight_readers import WEIGHTS

RUNS = 200


@pytest.mark.parametrize("targets", [TEXT, (*BINARY, *WEIGHTS)], ids=["text", "binary"])
def test_readers_give_a_clear_error_or_what_is_right(targets: tuple[Target, ...], tmp_path: Path) -> None:
    named = {target.name: target for target in targets}
    for engine in ("hostile", "hypothesis"):
        for name, found in watch.fuzz(named, engine, RUNS, 0, tmp_path / engine, tmp_path / "kept").items():
            assert not found.faults, f"{name}: " + "\n\n".join(f"{why}\n{kept}" for why, kept in found.faults[:5])
            wanted = len(named[name].hostile()) if engine == "hostile" else RUNS
            assert found.inputs == wanted == found.accepted + found.refused
            assert engine == "hostile" or min(found.accepted, wanted) > 0, f"{name}: nothing that was changed was read"
