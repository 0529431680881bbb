"""A look at a folder as the tests take it, and caption files to be spoilt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pycap.doctor import folder, layouts
from pycap.doctor.folder import Examined, Watch

Expected = dict[str, set[str]]


def examined(path: Path, stage: str = "", **options: Any) -> Examined:
    recognised = layouts.as_kind(path, stage) if stage else layouts.recognise(path)
    return folder.examine(str(path), recognised, Watch(), **{"threshold": 2, "workers": 2} | options)


def names(found: Examined) -> Expected:
    """The findings' names by kind; a kind's count must be that of its names."""
    told = {finding.kind: finding for finding in found.findings.sorted()}
    for finding in told.values():
        assert finding.count == len(finding.first), (finding.kind, finding.count, finding.first)
    return {kind: {name for name, _ in finding.first} for kind, finding in told.items()}


class Captions:
    """The captions file of a split in COCO's form, to be spoilt."""

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self.file = root / "annotations" / f"captions_{split}2017.json"
        self.body = json.loads(self.file.read_text())
        self.images: list[Any] = self.body["images"]
        self.annotations: list[Any] = self.body["annotations"]
        self.next = 0  # the first image that no defect was planted in

    def take(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Another image, and its captions."""
        image = self.images[self.next]
        self.next += 1
        whole = (a for a in self.annotations if isinstance(a, dict))
        return image, [a for a in whole if a.get("image_id") == image["id"]]

    def path(self, image: dict[str, Any]) -> Path:
        return self.root / f"{self.split}2017" / image["file_name"]

    def rename(self, image: dict[str, Any], name: str) -> None:
        self.path(image).unlink()
        image["file_name"] = name

    def write(self, encoding: str = "utf-8") -> None:
        """With an e acute, and nothing else, as `encoding` has it; the rest is escaped."""
        self.file.write_text(json.dumps(self.body).replace("\\u00e9", "\u00e9"), encoding=encoding)


def token_file(root: Path, name: str) -> tuple[Path, list[str]]:
    return root / name, (root / name).read_text().splitlines()
