"""The pairs in their order, what was decided about them, and what comes next: all that a page asks, and all that it does."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycap.data import DataError
from pycap.data.picks import ACCEPT, REJECT, SKIP, UNDO, Decisions, image_path
from pycap.data.vocab import has_words
from pycap.picking.journal import Journal, PicksError
from pycap.picking.results import Results, Row

_OPEN, _GONE = 0, 255
_CODES = {ACCEPT: 1, REJECT: 2, SKIP: 3}
#: What a grid may show.
SHOWN = ("all", *_CODES, "open")
_LONGEST = 1000  # letters of a caption
_RATE_S = 120.0  # over which pairs a minute are counted

Pair = dict[str, Any]


class NoPair(DataError):
    """There is no such pair, or it cannot be decided so; the text says why."""


class Conflict(Exception):
    """What was asked for contradicts what was decided meanwhile. pair: as it is now, where it is about one."""

    def __init__(self, reason: str, pair: Pair | None = None) -> None:
        super().__init__(reason)
        self.pair = pair


class Selection:
    """A person's selection. Positions 0 ... n-1 are those of the order; a pair whose image is missing keeps its own, and is
    passed over. Thread-safe: one request at a time is answered.
    """

    def __init__(
        self, results: Results, order: NDArray[np.int64], journal: Journal, target: int, checkpoint: str | None = None
    ) -> None:
        """order: the rows' numbers, int64 [n], each once. target: how many pairs are wanted. checkpoint: what made captions
        whose results do not say it.

        warnings: what a person should know of the decisions that are there. PicksError where they are of other results.
        """
        self.results, self.journal, self.target, self.checkpoint = results, journal, target, checkpoint
        self._rows = order.astype(np.uint32)
        self._positions = np.empty(len(order), np.uint32)
        self._positions[order] = np.arange(len(order), dtype=np.uint32)
        self._lock = Lock()
        self._decisions: Decisions[str] = Decisions()
        for row in journal.rows:
            if "decision" in row:
                self._decisions.add(image_path(journal.folder, row["file_name"]), row)
        self._codes = np.where(results.there[order], _OPEN, _GONE).astype(np.uint8)
        self.warnings = self._resume()
        self._recent: deque[float] = deque()

    def _resume(self) -> list[str]:
        """Find the decided images among the results, and see that they are the same ones."""
        known, foreign, other, makers = 0, [], [], {}
        for path, row in self._decisions.standing():
            below = self.results.folder.below(path)
            number = None if below is None else self.results.find(below)
            if number is None:
                foreign.append(path)
                continue
            known += 1
            self._set(int(self._positions[number]), row)
            result = self.results.row(number)
            if not row.get("edited") and row.get("caption") not in [each.caption for each in result.captions]:
                other.append(f"{row['file_name']}: {row.get('caption')!r} then, {result.captions[0].caption!r} now")
            maker = result.checkpoint or self.checkpoint
            if maker and row.get("checkpoint") not in (None, maker):
                makers[row["checkpoint"], maker] = row["file_name"]
        picks, results = self.journal.path, self.results.path
        remedy = "name another file with --output (both can be trained on, one after the other in one file)"
        if foreign and not known:
            raise PicksError(
                f"{picks}: none of its {len(foreign)} decided images is in {results} and {self.results.folder.given} (first: "
                f"{foreign[0]}); {remedy}"
            )
        if other:
            raise PicksError(
                f"{picks}: was begun with the captions of another run than {results}: {len(other)} of {known} captions in it "
                f"are none of that image's (first: {other[0]}); {remedy}"
            )
        said = [
            f"{picks}: was begun with captions of {before}, and these are of {now} (first: {name})"
            for (before, now), name in makers.items()
        ]
        if foreign:
            said.append(
                f"{picks}: {len(foreign)} of its decided images are not in {results} (first: {foreign[0]}); they stay"
            )
        return said

    # what a page asks -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Pairs that can be decided."""
        return int((self._codes != _GONE).sum())

    def state(self) -> dict[str, Any]:
        """How far the selection has come."""
        with self._lock:
            return self._state()

    def following(self, after: int, count: int) -> list[Pair]:
        """The next pairs to decide behind a position: open ones, then open ones before it, then the same of skipped ones."""
        with self._lock:
            found: list[int] = []
            for code in (_OPEN, _CODES[SKIP]):
                if len(found) < count:
                    places = np.flatnonzero(self._codes == code)
                    split = np.searchsorted(places, after, side="right")
                    before = places[: np.searchsorted(places, after)]
                    found += np.concatenate([places[split:], before])[: count - len(found)].tolist()
            return [self._pair(position) for position in found]

    def shown(self, start: int, count: int, show: str) -> tuple[list[Pair], int]:
        """(pairs number `start` and further of those that were decided so, how many there are). show: of `SHOWN`."""
        with self._lock:
            if show == "all":
                places = np.flatnonzero(self._codes != _GONE)
            else:
                places = np.flatnonzero(self._codes == _CODES.get(show, _OPEN))
            return [self._pair(position) for position in places[start : start + count].tolist()], len(places)

    def image(self, position: int) -> str:
        """The path of a pair's image. NoPair where there is none any more."""
        with self._lock:
            row = self._row(position)
            below = self.results.image(int(self._rows[position]), row)
        path = self.results.folder.path(below)
        if path is None:
            raise NoPair(f"{row.file_name}: is no longer in {self.results.folder.given}")
        return path

    # what a page does -------------------------------------------------------------------------------------------------

    def decide(
        self,
        position: int,
        decision: str,
        rank: int = 1,
        caption: str | None = None,
        again: bool = False,
        file_name: str | None = None,
    ) -> Pair:
        """Write a decision; the pair as it is then. A decision that stands already is not written again.

        rank: of the caption, from 1. caption: a person's own words in its place. again: in the place of another decision; a
        skipped pair needs no such. file_name: of the image that the page shows, where it says so. NoPair where that cannot be,
        Conflict where another tab was faster, PicksError where it cannot be written.
        """
        if decision not in _CODES:
            raise NoPair(f"decision {decision!r}: must be one of {', '.join(_CODES)}")
        with self._lock:
            row = self._row(position)
            if file_name not in (None, row.file_name):
                raise Conflict(f"pair {position} is {row.file_name} now, not {file_name}: reload the page", None)
            if not 1 <= rank <= len(row.captions):
                raise NoPair(f"rank {rank}: {row.file_name} has {len(row.captions)} captions")
            image = self._path(position, row)
            candidate = row.captions[rank - 1]
            own = None if caption is None else " ".join(caption.split())
            edited = own is not None and own != candidate.caption
            if edited and own is not None and (len(own) > _LONGEST or not has_words(own)):
                raise NoPair(f"caption {own[:60]!r}: must have a word, and {_LONGEST} letters at most")
            written = {
                "image_id": row.image_id,
                "file_name": self._file_name(image),
                "caption": own if edited else candidate.caption,
                "rank": rank,
                "logprob": None if edited else candidate.logprob,
                "decision": decision,
                "edited": edited,
                "time": _now(),
                "checkpoint": row.checkpoint or self.checkpoint,
            }
            standing = self._decisions.of(image)
            if standing is not None and _same(standing, written):
                return self._pair(position)
            if standing is not None and standing["decision"] != SKIP and not again:
                raise Conflict(
                    f"{row.file_name}: another tab has decided it: {standing['decision']}", self._pair(position)
                )
            self._write(position, image, written)
            self._recent.append(time.monotonic())
            return self._pair(position)

    def undo(self, position: int | None, decided_at: str | None = None) -> Pair:
        """Take the latest decision back, or that of one pair; the pair as it is then.

        decided_at: when that decision was made: who asks a second time, having had no answer, does not take back the one before
        it as well. Conflict where there is none, or another.
        """
        with self._lock:
            if position is None:
                position = self._latest()
                if position is None:
                    raise Conflict("nothing is decided yet")
            row = self._row(position)
            image = self._path(position, row)
            standing = self._decisions.of(image)
            if standing is None:
                raise Conflict(f"{row.file_name}: is not decided", self._pair(position))
            if decided_at not in (None, standing.get("time")):
                raise Conflict(
                    f"{row.file_name}: what was decided at {decided_at} stands no more", self._pair(position)
                )
            self._write(position, image, {**standing, "decision": UNDO, "time": _now()})
            return self._pair(position)

    def summary(self) -> str:
        """What was decided, in words."""
        counts = self._decisions.counts
        accepted = f"{counts[ACCEPT]:,} of {self.target:,} pairs accepted"
        return f"{accepted}, {counts[REJECT]:,} rejected, {counts[SKIP]:,} skipped: {self.journal.path}"

    # ------------------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        counts = self._decisions.counts
        latest = self._latest()
        return {
            "results": str(self.results.path),
            "picks": str(self.journal.path),
            "target": self.target,
            "accepted": counts[ACCEPT],
            "rejected": counts[REJECT],
            "skipped": counts[SKIP],
            "total": len(self),
            "per_minute": self._per_minute(),
            "latest": None if latest is None else {"position": latest, "decided_at": self._pair(latest)["decided_at"]},
        }

    def _per_minute(self) -> float:
        """Decisions a minute, of those of the last two minutes."""
        now = time.monotonic()
        while self._recent and now - self._recent[0] > _RATE_S:
            self._recent.popleft()
        if len(self._recent) < 2:
            return 0.0
        return round(60 * (len(self._recent) - 1) / max(now - self._recent[0], 1.0), 1)

    def _pair(self, position: int) -> Pair:
        row = self._row(position)
        standing = self._decisions.of(self._path(position, row)) or {}
        accepted = standing.get("decision") == ACCEPT
        return {
            "position": position,
            "image_id": row.image_id,
            "file_name": row.file_name,
            "image": f"/image/{position}",
            "captions": [
                {"rank": rank, "caption": each.caption, "logprob": each.logprob}
                for rank, each in enumerate(row.captions, 1)
            ],
            "decision": standing.get("decision"),
            "chosen": {key: standing.get(key) for key in ("rank", "caption", "edited")} if accepted else None,
            "decided_at": standing.get("time"),
        }

    def _row(self, position: int) -> Row:
        """A pair's row, read. NoPair where there is no such position, or its image is missing."""
        if not 0 <= position < len(self._rows):
            raise NoPair(f"pair {position}: there are {len(self._rows)}, from 0 on")
        row = self.results.row(int(self._rows[position]))
        if self._codes[position] == _GONE:
            raise NoPair(f"{row.file_name}: is not in {self.results.folder.given}")
        return row

    def _path(self, position: int, row: Row) -> str:
        return self.results.folder.full(self.results.image(int(self._rows[position]), row))

    def _latest(self) -> int | None:
        """The position of the latest decision that stands."""
        return next((p for p in map(self._position, self._decisions.latest()) if p is not None), None)

    def _position(self, path: str) -> int | None:
        """The position of an image by its absolute path; None where no pair is of it."""
        below = self.results.folder.below(path)
        number = None if below is None else self.results.find(below)
        if number is None or not self.results.there[number]:
            return None
        return int(self._positions[number])

    def _file_name(self, path: str) -> str:
        """As picks have it: from their file's folder, where the image is below it (both can be moved together), or absolute."""
        inside = os.path.join(self.journal.folder, "")
        return path.removeprefix(inside)

    def _write(self, position: int, image: str, row: Mapping[str, Any]) -> None:
        self.journal.append(dict(row))
        self._decisions.add(image, dict(row))
        self._set(position, self._decisions.of(image))

    def _set(self, position: int, row: Mapping[str, Any] | None) -> None:
        if self._codes[position] != _GONE:
            self._codes[position] = _OPEN if row is None else _CODES[row["decision"]]


def _same(standing: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a decision is one that stands already: of an accepted pair, with the same caption."""
    keys = ("decision", "caption") if row["decision"] == ACCEPT else ("decision",)
    return all(standing.get(key) == row[key] for key in keys)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
