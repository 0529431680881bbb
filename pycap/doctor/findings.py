"""What was found in one data folder: by kind, counted, the first ones by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pycap.doctor.kinds import ERROR, KINDS, SEVERITIES, plural

KEPT = 50  # of a kind, by name; the others are counted


@dataclass
class Finding:
    """All of one kind. first: (name, what there is to say of it) of the first `KEPT`."""

    kind: str
    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)


class Findings:
    """Findings by kind. Nothing is counted twice: the same thing of the same kind is told once."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._told: set[tuple[str, str, str]] = set()

    def add(self, kind: str, name: object, detail: str = "", count: int = 1) -> None:
        """One more (or `count` that go by one name). KeyError for a kind that `KINDS` lacks."""
        assert kind in KINDS, kind
        name = str(name)
        found = self._found.setdefault(kind, Finding(kind))
        if len(found.first) < KEPT:
            if (kind, name, detail) in self._told:
                return
            self._told.add((kind, name, detail))
            found.first.append((name, detail))
        found.count += count

    def sorted(self) -> list[Finding]:
        """The worst first; within a severity in the order of `KINDS`."""
        order = {kind: (SEVERITIES.index(KINDS[kind].severity), place) for place, kind in enumerate(KINDS)}
        return sorted(self._found.values(), key=lambda finding: order[finding.kind])

    def __contains__(self, kind: str) -> bool:
        return kind in self._found

    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity: kinds, not things."""
        return {s: sum(KINDS[kind].severity == s for kind in self._found) for s in SEVERITIES}

    @property
    def errors(self) -> bool:
        return bool(self.counts()[ERROR])

    def plain(self, folder: str) -> list[dict[str, Any]]:
        """As JSON values."""
        return [
            {
                "kind": f.kind,
                "severity": KINDS[f.kind].severity,
                "count": f.count,
                "what": plural(f.kind, f.count),
                "why": KINDS[f.kind].why,
                "remedy": KINDS[f.kind].remedy.replace("{folder}", folder),
                "first": [{"name": name, "detail": detail} for name, detail in f.first],
            }
            for f in self.sorted()
        ]
