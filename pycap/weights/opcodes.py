"""A pickle's steps gone through before any is taken: how deep and how large is what they make.

`pickle` in C follows them without bounds. A tuple in a tuple, two hundred thousand deep, ends the interpreter when it is
hashed;
one that holds itself twice, a hundred times over, is hashed for ever; a memo numbered two billion takes sixteen gigabytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import IO

#: What a state dict's pickle may have; VGG19's has 4,000 bytes and 1,500 steps, and is eight deep.
MOST_BYTES, MOST_STEPS, MOST_DEPTH, MOST_PARTS = 4 << 20, 200_000, 100, 1_000_000
_MARK = (-1, 0)
#: Steps that put things into what lies below them, which is as it was otherwise.
_FILLING = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))

Made = tuple[int, int]  # how deep, of how many parts


def checked(file: IO[bytes]) -> io.BytesIO:
    """The pickle that begins where the file is, whose end the file is then at. UnpicklingError, or what `pickletools` raises of
    damaged ones, where it has no end or is too much."""
    start = file.tell()
    data = file.read(MOST_BYTES)
    stack: list[Made] = []
    memo: dict[int, Made] = {}
    end = 0
    for number, (step, argument, at) in enumerate(pickletools.genops(data), 1):
        end = (at or 0) + 1
        if number > MOST_STEPS:
            raise pickle.UnpicklingError(f"more than {MOST_STEPS:,} steps")
        _follow(step, argument, stack, memo)
        if stack and (stack[-1][0] > MOST_DEPTH or stack[-1][1] > MOST_PARTS):
            raise pickle.UnpicklingError(
                f"what it makes is more than {MOST_DEPTH} deep, or of more than {MOST_PARTS:,} parts"
            )
    file.seek(start + end)
    return io.BytesIO(data[:end])


def _follow(step: pickletools.OpcodeInfo, argument: object, stack: list[Made], memo: dict[int, Made]) -> None:
    """What a step does to the stack and the memo."""
    name, before = step.name, step.stack_before
    if name == "MARK":
        stack.append(_MARK)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        place = len(memo) if name == "MEMOIZE" else argument
        if not isinstance(place, int) or not 0 <= place <= MOST_STEPS:
            raise pickle.UnpicklingError(f"a memo numbered {place}")
        memo[place] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])  # type: ignore[index]
    elif name == "DUP":
        stack.append(stack[-1])
    elif name in ("POP", "POP_MARK"):
        if name == "POP" or stack[-1] == _MARK:
            stack.pop()
        else:
            _to_mark(stack)
    else:
        own = _to_mark(stack) if pickletools.markobject in before else []
        below = before.index(pickletools.markobject) if pickletools.markobject in before else len(before)
        for _ in range(below):
            own.append(stack.pop())
        if name in _FILLING:
            filled, own = own[-1], own[:-1]
            deepest = max((depth for depth, _ in own), default=0)
            stack.append((max(filled[0], deepest + 1), filled[1] + sum(parts for _, parts in own)))
        elif step.stack_after:
            stack.append((1 + max((depth for depth, _ in own), default=0), 1 + sum(parts for _, parts in own)))


def _to_mark(stack: list[Made]) -> list[Made]:
    """What lies above the last mark, taken off with it."""
    own = []
    while (top := stack.pop()) != _MARK:
        own.append(top)
    return own
