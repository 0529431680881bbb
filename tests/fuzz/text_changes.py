"""Changes to text that mean something, for atheris: hypothesis draws its own (`strategies`).

Each changes a file in place with a random generator, as those of binary forms do (`changes`): most changes to single bytes
leave no JSON, and say nothing of the code behind the parser.
"""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.mutations import Change
from tests.fuzz.changes import Files
from tests.fuzz.strategies import ODD_JSON, ODD_YAML, SPOILT_TEXT

_HERE = "\ue000 here \ue000"  # in the place of what is put into a document as it is


def _parts(body: Any) -> list[Any]:
    """All objects and lists of a document that hold something."""
    found, waiting = [], [body]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (dict, list)) and one:
            found.append(one)
            waiting += one.values() if isinstance(one, dict) else one
    return found


def _json_changed(text: bytes, rng: random.Random) -> bytes:
    """A value replaced, left out, or repeated under another key; `text` as it is where it is no JSON that holds something."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    parts = _parts(body)
    if not parts:
        return text
    part = rng.choice(parts)
    at = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
    odd = rng.choice((*ODD_JSON, *(json.dumps(each) for each in (rng.choice(parts), rng.randrange(-9, 300)))))
    match rng.randrange(6):
        case 0:
            del part[at]
        case 1 if isinstance(part, dict):
            part[rng.choice(("", "id", "_", f"{at}s", "\0"))] = part.pop(at)
        case 1:
            part.insert(rng.randrange(len(part) + 1), part[at])
        case _:
            part[at] = _HERE
    return json.dumps(body).replace(json.dumps(_HERE), odd).encode("utf-8", "surrogatepass")


def _json(data: bytearray, rng: random.Random, files: Files) -> None:
    data[:] = _json_changed(bytes(data), rng)


def _line(data: bytearray, rng: random.Random, files: Files) -> None:
    """A line left out, doubled, put elsewhere, or with something odd in it; of JSON Lines, a value in it."""
    lines = bytes(data).split(b"\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(to, lines[at])
        case 2:
            lines[at], lines[to] = lines[to], lines[at]
        case _ if lines[at].startswith(b"{"):
            lines[at] = _json_changed(lines[at], rng)
        case _:
            cut, odd = rng.randrange(len(lines[at]) + 1), rng.choice(SPOILT_TEXT)
            lines[at] = lines[at][:cut] + odd + lines[at][cut + rng.randrange(3) :]
    data[:] = b"\n".join(lines)


def _option(data: bytearray, rng: random.Random, files: Files) -> None:
    """Another value for an option."""
    lines = bytes(data).split(b"\n")
    at = rng.randrange(len(lines))
    key, mark, _ = lines[at].partition(b":")
    if mark:
        lines[at] = key + b": " + rng.choice((*ODD_YAML, str(rng.randrange(-9, 300)))).encode("utf-8", "surrogatepass")
    data[:] = b"\n".join(lines)


#: By a target's form.
CHANGES: dict[str, dict[str, Change]] = {
    "json": {"JSON": _json},
    "jsonl": {"line": _line},
    "yaml": {"option": _option, "line": _line},
    "lines": {"line": _line},
    "binary": {},
}
