"""Pickles that would crash the interpreter, fill memory or never end are refused before they are followed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest

from pycap import weights
from pycap.weights import opcodes
from tests.weights import forms


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s.", "more than 100 deep|more than 200,000 steps"),
        (b"\x80\x02}K\x01" + b"\x85" * 150 + b"K\x01s.", "more than 100 deep"),
        (b"\x80\x02K\x01" + b"2\x86" * 60 + b".", "more than 1,000,000 parts"),
        (b"\x80\x02}r\xff\xff\xff\x07.", "a memo numbered 134217727"),
        (b"\x80\x02" + b"(" * 300_000 + b".", "more than 200,000 steps"),
        (b"\x80\x02X\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02}h\x07.", "damaged"),
    ],
)
@pytest.mark.parametrize("write", [forms.write_pth, forms.write_older_pth])
def test_a_pickle_that_is_too_much_is_refused(tmp_path: Path, write: object, pickled: bytes, said: str) -> None:
    arrays = forms.state_dict(forms.torch_net("vgg_micro", 0.02, 16, 2))
    write(tmp_path / "w.pth", arrays, pickled)  # type: ignore[operator]
    with pytest.raises(weights.WeightsError, match=said):
        weights.load(tmp_path / "w.pth")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_depth_and_parts_are_those_of_what_is_made(monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    """By what the limits let through: lists that are filled later, dictionaries, tuples of many, the same tuple many times."""
    nested: object = 1
    for _ in range(20):
        nested = [nested]
    shared = ((7,) * 30,) * 4
    for value, depth, parts in (
        (nested, 21, 21),
        ({"a": (1, 2, 3)}, 3, 6),
        (tuple(range(40)), 2, 41),
        (shared, 3, 125),
    ):
        data = pickle.dumps(value, protocol)
        for limit, most in (("MOST_DEPTH", depth), ("MOST_PARTS", parts)):
            monkeypatch.setattr(opcodes, limit, most)
            assert opcodes.checked(io.BytesIO(data + b"behind")).read() == data
            monkeypatch.setattr(opcodes, limit, most - 1)
            with pytest.raises(pickle.UnpicklingError, match="what it makes is more than"):
                opcodes.checked(io.BytesIO(data))
            monkeypatch.undo()


@pytest.mark.parametrize(
    ("pickled", "sound"),
    [
        (b"}K\x010.", True),  # POP
        (b"}(0.", True),  # of a mark
        (b"}(K\x01K\x021.", True),  # POP_MARK
        (b"}(K\x01K\x021t.", False),  # after which there is none
        (b"}(K\x01K\x020t.", True),
        (b"K\x01t.", False),
    ],
)
def test_marks_are_followed(pickled: bytes, sound: bool) -> None:
    if sound:
        assert opcodes.checked(io.BytesIO(pickled)).read() == pickled
    else:
        with pytest.raises(IndexError):
            opcodes.checked(io.BytesIO(pickled))


def test_parts_of_a_zip_that_overlap_are_refused(tmp_path: Path) -> None:
    arrays = forms.state_dict(forms.torch_net("vgg_micro", 0.02, 16, 2))
    path = forms.write_pth(tmp_path / "w.pth", arrays)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(weights.WeightsError, match="more bytes than it has"):
        weights.load(path)
