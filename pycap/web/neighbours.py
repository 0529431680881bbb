"""What a service asks of the C libraries below it, since it shares its CPUs and its memory with others, itself among them."""

from __future__ import annotations

import ctypes
import os

# mallopt(3): allocations of so many bytes and more are given back to the system when they are freed.
_M_MMAP_THRESHOLD, _GIVEN_BACK = -3, 1 << 18


def be_considerate() -> None:
    """Before the kernels are loaded: their threads wait asleep, and the memory of decoded images goes back at once.

    By default OpenMP's threads spin for milliseconds at the end of each kernel. Where something else wants their CPU (the event
    loop, a decoder, another program), all of a kernel's threads then wait for the one that has none: captions took 5 to 30
    times as long on two CPUs of which one was busy. glibc, too, raises by itself what it considers worth giving back, up to
    32 MB, and with images of every size the heap between those that it keeps grows to twice what is in use. What
    OMP_WAIT_POLICY says in the environment stands; other C libraries are left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _GIVEN_BACK)
