"""Inputs as hypothesis makes them: sound files of a form with something wrong in them.

Text is changed where it means something: a value of another type, a key missing or twice, numbers of 5,000 digits or without
end, nesting without end, halves of characters, other encodings. Binary files, and a third of the texts, are changed by the
bytes
and by the structure of their form (`benchmarks.mutations`, `changes`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from benchmarks.mutations import changed, structure_of
from tests.fuzz.target import Target

Draw = Any


class Raw(str):
    """Text that stands in JSON as it is."""


#: Values that JSON may hold, or that look as if it might.
ODD_JSON = tuple(
    map(
        Raw,
        (
            "null", "true", "false", "0", "-1", "1.5", "1e999", "-1e999", "NaN", "Infinity", "9" * 5000,
            "-" + "9" * 400, "1" + "0" * 30,
            "[]", "{}", '""', '"\\ud800"', '"a\\ud800.jpg"', '"\\udcff"', '"\\u0000"', '"a\\u0000.jpg"',
            '"../../../../etc/passwd"', '"/"',
            '"."', '".."', '"' + "x" * 5000 + '"', '"' + "x/" * 3000 + 'a.jpg"', "[" * 100_000 + "]" * 100_000, "[" * 100_000,
            '{"a":' * 100_000 + "1" + "}" * 100_000, "[[1, 2], {}]", '{"id": 1}', '"\\u202e"', '"\U0001f600"', "01",
            "1.", "'x'", "undefined",
        ),
    )
)  # fmt: skip
SPOILT_TEXT = (b"\xef\xbb\xbf", b"\0", b"\xff", b"\xed\xa0\x80", b"\r", b"\r\n", b"\n\n", b"\xe2\x80\xa8", b"\t",
b'"', b"\\", b",", b"{", b"}",
                b"[" * 100_000, b"#", b" ", b"\x0b\x0c", b"\xc2\x85", b"|", b"a" * 200_000)  # fmt: skip
_ENCODINGS = ("utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037")
ODD_YAML = (
    "null", "~", "yes", "[]", "{}", "1e999", ".nan", ".inf", "-1", "0", "9" * 5000, "0x" + "f" * 5000, "1:1:1:1",
    "2001-99-99", "2001-01-01",
    "!!python/object/apply:os.system [true]", "!!binary ====", "!!float x", "!!int ''", "!!int x", "!!timestamp x",
    "!!set {a, b}", "!!omap [a: b]",
    "&a [*a]", "*b", "? [a]\n: b", "[" * 2000, "{" * 2000, "[" * 200 + "]" * 200, "'", '"\\ud800"', '"\\x00"',
    "|\n  text", "!!str 3", "<<: {epochs: 3}", "%YAML 9",
    "&x [1,1,1,1,1,1,1,1,1,1]", "\u2028", "- a", "x" * 5000, "1_000", "0o17", "+.5", "!!bool maybe", "!!null x", "=",
    "!<tag:x> y", "10_0:59.9",
)  # fmt: skip
_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Changed files of the target's form."""
    binary = _changed(target)
    forms: dict[str, st.SearchStrategy[bytes]] = {
        "json": _json(target.seeds),
        "jsonl": _json_lines(target.seeds),
        "yaml": _yaml(target.seeds),
        "lines": _spoilt(st.sampled_from(sorted(target.seeds.values()))),
        "binary": binary,
    }
    own = forms[target.form]
    return own if target.form == "binary" else st.one_of(own, own, binary)


@st.composite
def _changed(draw: Draw, target: Target) -> bytes:
    rng = random.Random(draw(st.integers(0, (1 << 48) - 1)))
    name = rng.choice(sorted(target.seeds))
    return changed(target.seeds, name, rng, target.structure or structure_of(name)).data


# JSON -----------------------------------------------------------------------------------------------------------------

_values = st.one_of(
    st.sampled_from(ODD_JSON),
    st.sampled_from(ODD_JSON),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.booleans(),
    st.lists(st.integers(-2, 300), max_size=4),
)


def _dumped(value: Any) -> str:
    """As `json.dumps` has it, but for Raw, and objects as lists of pairs, in which a key may stand twice."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, _Object):
        return "{" + ", ".join(f"{_dumped(key)}: {_dumped(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumped, value)) + "]"
    return json.dumps(value)


class _Object(list):  # type: ignore[type-arg]
    """An object's pairs."""


def _parts(value: Any) -> list[list[Any]]:
    """All objects and lists in a document, those deep in it as often as those at its top."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list) and one:
            found.append(one)
            waiting += [pair[1] for pair in one] if isinstance(one, _Object) else one
    return found


def _edit(draw: Draw, body: Any) -> Any:
    """One change to a parsed document."""
    parts = _parts(body)
    kind = draw(st.integers(0, 9))
    if kind == 0 or not parts:
        return draw(_values)
    part = parts[draw(st.integers(0, len(parts) - 1))]
    at = draw(st.integers(0, len(part) - 1))
    is_object = isinstance(part, _Object)
    if kind <= 5:
        value = draw(_values)
        part[at] = [part[at][0], value] if is_object else value
    elif kind == 6:
        del part[at]
    elif kind == 7:
        part.append([part[at][0], draw(_values)] if is_object else part[at])
    elif kind == 8 and is_object:
        part[at] = [draw(st.one_of(st.text(max_size=8), st.sampled_from(ODD_JSON[23:27]))), part[at][1]]
    else:
        part[:] = part[:] * draw(st.sampled_from((2, 2, 50)))
    return body


@st.composite
def _document(draw: Draw, text: bytes) -> bytes:
    try:
        body = json.loads(
            text.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=lambda pairs: _Object([list(p) for p in pairs])
        )
    except (ValueError, RecursionError):  # changed before, and no JSON any more
        return draw(_spoilt(st.just(text)))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        body = _edit(draw, body)
    return _dumped(body).encode("utf-8", "surrogatepass")


@st.composite
def _json(draw: Draw, seeds: Mapping[str, bytes]) -> bytes:
    seed = seeds[draw(st.sampled_from(sorted(seeds)))]
    if not seed.lstrip().startswith((b"{", b"[")):
        return draw(_spoilt(st.just(seed)))
    made = draw(_document(seed))
    return draw(_spoilt(st.just(made))) if draw(st.integers(0, 5)) == 0 else made


@st.composite
def _json_lines(draw: Draw, seeds: Mapping[str, bytes]) -> bytes:
    """Some lines of JSON Lines changed, left out, doubled, or out of order."""
    seed = seeds[draw(st.sampled_from(sorted(seeds)))]
    lines = seed.split(b"\n")
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 7)):
            case 0:
                del lines[at]
                lines = lines or [b""]
            case 1:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 2:
                lines[at] = draw(_spoilt(st.just(lines[at])))
            case _ if lines[at].startswith(b"{"):
                lines[at] = draw(_document(lines[at]))
            case _:
                lines[at] = draw(_spoilt(st.just(lines[at])))
    return b"\n".join(lines)


# Other text -----------------------------------------------------------------------------------------------------------


@st.composite
def _spoilt(draw: Draw, texts: st.SearchStrategy[bytes]) -> bytes:
    """Text with odd bytes put in or taken out, cut short, repeated, or in another encoding."""
    data = bytearray(draw(texts))
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((0, 0, 1, 2, 10, 100)))
        match draw(st.integers(0, 9)):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = data[at : at + length] * draw(st.sampled_from((1, 5, 500)))
            case 2:
                del data[at : at + length]
            case 3:
                data[at : at + length] = draw(st.text(max_size=20)).encode("utf-8", "surrogatepass")
            case 4:
                data[at : at + length] = draw(st.binary(max_size=20))
            case 5:
                try:
                    data = bytearray(bytes(data).decode().encode(draw(st.sampled_from(_ENCODINGS))))
                except UnicodeError:  # it is no UTF-8 any more, or has letters that the encoding lacks
                    data += b"\xff"
            case _:
                data[at : at + length] = draw(st.sampled_from(SPOILT_TEXT))
    return bytes(data)


@st.composite
def _yaml(draw: Draw, seeds: Mapping[str, bytes]) -> bytes:
    """Lines `option: value` with other values, or other lines."""
    lines = seeds[draw(st.sampled_from(sorted(seeds)))].decode().split("\n")
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        at = draw(st.integers(0, len(lines) - 1))
        key = lines[at].partition(":")[0]
        odd = draw(
            st.one_of(st.sampled_from(ODD_YAML), st.text(max_size=20), st.floats().map(str), st.integers().map(str))
        )
        match draw(st.integers(0, 7)):
            case 0:
                lines[at] = odd
            case 1:
                del lines[at]
                lines = lines or [""]
            case 2:
                lines.append(lines[at])
            case 3:
                lines[at:at] = _BOMB.split("\n")
                lines.append(f"{key}: *{draw(st.sampled_from('abhj'))}")
            case 4:
                lines[at] = f"  {lines[at]}"
            case _:
                lines[at] = f"{key}: {odd}"
    made = "\n".join(lines).encode("utf-8", "surrogatepass")
    return draw(_spoilt(st.just(made))) if draw(st.integers(0, 5)) == 0 else made
