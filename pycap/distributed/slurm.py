"""Where the processes of a Slurm step meet: rank 0's machine, a port, and a key that only this user's processes have."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from pycap.distributed.launch import DistributedError

_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that systems give to whoever asks for any


def meeting_point(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """(rank 0's host, its port): the first of SLURM_STEP_NODELIST, unless PYCAP_HOST says another; a port that follows from job
    and step, unless PYCAP_PORT does. Raises DistributedError where they say nothing of use."""
    host = environ.get("PYCAP_HOST") or first_host(environ.get("SLURM_STEP_NODELIST", ""))
    host = host or environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not host:
        raise DistributedError(
            "Slurm does not say on which machine rank 0 is (SLURM_STEP_NODELIST): name it in PYCAP_HOST"
        )
    asked = environ.get("PYCAP_PORT", "")
    if asked and not (asked.isdecimal() and 0 < int(asked) < 65536):
        raise DistributedError(f"PYCAP_PORT={asked!r} is no port: give a number up to 65535")
    job = ".".join(environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return host, int(asked) if asked else _FIRST_PORT + int.from_bytes(_digest(job)[:4]) % _PORTS


def first_host(nodes: str) -> str:
    """The first name of a list as Slurm writes it: gpu[07-09,12],login -> gpu07; of several brackets the first of each."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^-,\]]*)[^\]]*\]", r"\1", first[0] if first else "")


def key(environ: Mapping[str, str] = os.environ) -> bytes:
    """What this job's processes prove to each other that they know: made of PYCAP_TOKEN, else of a secret in the user's own
    folder, which the first to ask makes, and of the job's number."""
    secret = environ.get("PYCAP_TOKEN", "").encode() or _own_secret(environ)
    return _digest(secret.hex() + "".join(environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")))


def _own_secret(environ: Mapping[str, str]) -> bytes:
    folder = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pycap"
    path = folder / "token"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder / f"token.{secrets.token_hex(8)}"
            fresh.touch(0o600)
            fresh.write_text(secrets.token_hex(32), "ascii")
            try:
                os.link(fresh, path)  # whole or not at all, and of several ranks the first
            except FileExistsError:
                path.stat()
            finally:
                fresh.unlink()
        return path.read_bytes()
    except OSError as error:
        raise DistributedError(
            f"{path}: the secret that shows ranks to each other cannot be kept there ({error}): set PYCAP_TOKEN to one of your "
            "own, the same for all"
        ) from error


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
