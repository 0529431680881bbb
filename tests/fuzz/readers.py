"""Every reader that is fuzzed, by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.binary_readers import BINARY
from tests.fuzz.target import Target
from tests.fuzz.text_readers import TEXT
from tests.fuzz.weight_readers import WEIGHTS

TARGETS: Mapping[str, Target] = {target.name: target for target in (*TEXT, *BINARY, *WEIGHTS)}
