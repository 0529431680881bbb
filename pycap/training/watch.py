"""Who is told of a run as it goes: `pycap reproduce`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycap.data.loader import Batch


class Watch:
    """Told of a run on each of its ranks, in the same order and with the same values; this one does nothing with it.

    What a method raises ends the run there and then, without a checkpoint.
    """

    def begins(self, record: Mapping[str, Any]) -> None:
        """The run makes its first step next; record: that of its provenance."""

    def launched(self, step: int, batch: Batch) -> None:
        """A step has been launched, on this rank's share of a batch."""

    def row(self, row: Mapping[str, Any]) -> None:
        """What has become a row of log.jsonl."""

    def wants(self, step: int) -> bool:
        """Whether `stands` is to be called after this step."""
        return False

    def stands(self, step: int, model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
        """What the model and the optimiser hold after a step, in which they are left."""

    def ends(self, position: Mapping[str, int]) -> bool:
        """Whether the run is to be saved and stopped (`Stopped`) at this position: the next batch, of an epoch from 0."""
        return False
