"""Scores the captions in a real run's record, where the machine that ran it could not: every metric that pycap has here.

python -m benchmarks.score_run real_run.json --data flickr8k.zip
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_run import scored, unpacked
from pycap.data import DataError, load_split
from pycap.data.disk import write_whole


def score(record: dict[str, Any], data: Path) -> int:
    """Score everything that holds captions; only the best keeps them. Returns how many were scored."""
    examples, _ = load_split(record["config"]["stage"], data, "val")
    references = {str(example.image_id): list(example.captions) for example in examples}
    done = 0
    best = record.get("best", {})
    for row in [*record["epochs"], best]:
        if "captions" not in row:
            continue
        unknown = row["captions"].keys() - references.keys()
        if unknown:
            raise DataError(
                f"{data}: {len(unknown)} captioned images are not in it (first: {min(unknown)}); give the run's data"
            )
        row["scores"] = scored(row["captions"], references)
        row.pop("unscored", None)
        if row is not best:
            del row["captions"]
        done += 1
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Score the record and write it anew; 1 and one line where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_run", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, metavar="FILE.json")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR|FILE.zip")
    own = parser.parse_args(argv)
    try:
        record = json.loads(own.record.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory(prefix="pycap-score-") as place:
            done = score(record, unpacked(own.data, Path(place)))
    except (DataError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    write_whole(own.record, json.dumps(record, indent=1) + "\n")
    print(f"{done} scored; best: {record.get('best', {}).get('scores')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
