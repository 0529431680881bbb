"""What is fuzzed: a reader, sound files of its form, and what it may answer to any other file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.mutations import Change
from pycap.bulk.journal import JournalError
from pycap.checkpoint import CheckpointError
from pycap.config import ConfigError
from pycap.data import DataError
from pycap.data.images import ImageError
from pycap.picking.journal import PicksError
from pycap.weights import WeightsError

#: What a reader may raise of a file that it cannot use. By these very classes: what Python's `json` raises is a
#: ValueError, too,
#: and DataError is one.
OURS = (DataError, ImageError, WeightsError, ConfigError, CheckpointError, JournalError, PicksError)
#: Of what a child holds before an input, in MiB: a text file of some ten kilobytes needs no more, whatever it says.
TEXT_MIB, BINARY_MIB = 64, 128
#: Seconds after which an input hangs.
PATIENCE_S = 5.0

Verdict = Literal["accepted", "refused", "failed"]


class Wrong(AssertionError):
    """A reader accepted a file and gave what cannot be right; the text says what."""


def require(condition: bool, what: str) -> None:
    """Wrong unless the condition holds."""
    if not condition:
        raise Wrong(what)


class Outcome(NamedTuple):
    """What came of one input. why: of a refusal its message, of a failure what is wrong."""

    verdict: Verdict
    why: str
    seconds: float


@dataclass(frozen=True)
class Target:
    """A reader of files.

    file: where in a folder of its own the input lies. prepare: makes what else that folder must hold. read: the folder -> what
    the reader gives; it reads whatever the reader reads lazily. check: Wrong for a result that no file may have. seeds: sound
    files by name, made by pycap's own writers or by libraries. same: whether the result of a sound file is what was written, by
    the seed's name. form: which changes of structure apply, and which strategy of hypothesis. memory_mib: by how much a
    process may grow; of files above a MiB, by `child.RATIO` times their size more. hostile: files by name that are sound as
    their form goes, and are to be read or refused as any other.
    """

    name: str
    file: str
    read: Callable[[Path], Any]
    make: Callable[[], Mapping[str, bytes]]
    form: Literal["json", "jsonl", "yaml", "lines", "binary"]
    prepare: Callable[[Path], None] = lambda folder: None
    check: Callable[[Any], None] = lambda result: None
    same: Callable[[str, Any], None] = lambda seed, result: None
    structure: Mapping[str, Change] = field(default_factory=dict)
    memory_mib: int = TEXT_MIB
    hostile: Callable[[], Mapping[str, bytes]] = dict
    errors: tuple[type[Exception], ...] = OURS

    @cached_property
    def seeds(self) -> Mapping[str, bytes]:
        """Sound files by name."""
        return self.make()

    def try_(self, folder: Path, data: bytes) -> Outcome:
        """Have the reader read `data`."""
        path = folder / self.file
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            self.check(self.read(folder))
            verdict, why = "accepted", ""
        except Wrong as error:
            verdict, why = "failed", f"accepted, and is wrong: {error}"
        except Exception as error:
            verdict, why = self._judged(error, path)
        return Outcome(verdict, why, time.perf_counter() - start)  # type: ignore[arg-type]

    def _judged(self, error: Exception, path: Path) -> tuple[str, str]:
        text = str(error)
        if type(error) not in self.errors:
            return "failed", f"{type(error).__name__}, not an error of pycap's: {text[:300]}"
        if path.name not in text and str(path.parent) not in text:
            return "failed", f"the message names no file: {text[:300]}"
        if len(text) > 4000:
            return "failed", f"a message of {len(text):,} letters: {text[:100]}"
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return "failed", f"the message cannot be printed: {text[:300]!r}"
        return "refused", text
