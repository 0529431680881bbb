"""`pycap select`: the page on which a person picks pairs, and the answers that it lives on (docs/selecting.md)."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import sys
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pycap.data import DataError
from pycap.data.images import ImageError, image_format, preview
from pycap.picking.duplicates import COMPARED, near_duplicates
from pycap.picking.images import ImageFolder
from pycap.picking.journal import Journal, PicksError
from pycap.picking.order import Numbers, base, capped, last
from pycap.picking.results import Results
from pycap.picking.selection import SHOWN, Conflict, NoPair, Selection
from pycap.progress import Display
from pycap.web import server
from pycap.web.refusals import Refused, error, in_json, number_in_path

_MB = 1 << 20
_LONGEST_BODY = 1 << 16
_MOST_PAIRS = 500  # an answer
_SIDES = (16, 4096)
#: What browsers show as it is, up to this many bytes; the rest is encoded anew.
_SHOWABLE = {f: f"image/{f.lower()}" for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}
_LARGEST = 32 * _MB
_LONGEST_SIDE = 2048
_decoding = BoundedSemaphore(2)  # images decoded at once: each may take 240 MB

Answer = Callable[[Request], Awaitable[Response]]


def routes(selection: Selection, **told: Any) -> list[BaseRoute]:
    """What the page asks and does, in JSON, and the images (docs/selecting.md). told: what else the state is to say."""

    def state() -> dict[str, Any]:
        return selection.state() | told

    def decided(conflict: Conflict) -> Response:
        return error(409, str(conflict), state=state(), pair=conflict.pair)

    @_answering
    async def tell_state(request: Request) -> Response:
        return in_json(await run_in_threadpool(state))

    @_answering
    async def tell_next(request: Request) -> Response:
        after, count = _number(request, "after", -1, -1, sys.maxsize), _number(request, "count", 11, 1, _MOST_PAIRS)
        return in_json({"pairs": await run_in_threadpool(selection.following, after, count)})

    @_answering
    async def tell_pairs(request: Request) -> Response:
        start, count = _number(request, "start", 0, 0, sys.maxsize), _number(request, "count", 60, 1, _MOST_PAIRS)
        show = request.query_params.get("show", "all")
        if show not in SHOWN:
            raise Refused(400, f"show={show}: must be one of {', '.join(SHOWN)}")
        pairs, found = await run_in_threadpool(selection.shown, start, count, show)
        return in_json({"pairs": pairs, "count": found})

    @_answering
    async def decide(request: Request) -> Response:
        asked = await _body(request)
        again = _field(asked, "again", (bool, type(None)), None)
        rank = _field(asked, "rank", (int, type(None)), None)
        call = {
            "position": _field(asked, "position", (int,)),
            "decision": _field(asked, "decision", (str,)),
            "rank": 1 if rank is None else rank,
            "caption": _field(asked, "caption", (str, type(None)), None),
            "file_name": _field(asked, "file_name", (str, type(None)), None),
        }
        try:
            pair = await run_in_threadpool(selection.decide, again=bool(again), **call)
        except Conflict as conflict:
            return decided(conflict)
        return in_json({"state": state(), "pair": pair})

    @_answering
    async def undo(request: Request) -> Response:
        asked = await _body(request)
        position = _field(asked, "position", (int, type(None)), None)
        decided_at = _field(asked, "decided_at", (str, type(None)), None)
        try:
            pair = await run_in_threadpool(selection.undo, position, decided_at)
        except Conflict as conflict:
            return decided(conflict)
        return in_json({"state": state(), "pair": pair})

    @_answering
    async def image(request: Request) -> Response:
        side = _number(request, "side", 0, *_SIDES) if "side" in request.query_params else None
        path = await run_in_threadpool(selection.image, number_in_path(request, "position"))
        standing = os.stat(path)
        # A position is another image's after a start with other options: a browser asks each time, and is told "the same".
        tag = f'"{standing.st_ino:x}-{standing.st_mtime_ns:x}-{standing.st_size:x}-{side or 0}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        content, media_type = await run_in_threadpool(_shown, path, side)
        return Response(content, media_type=media_type, headers=headers)

    return [
        Route("/api/state", tell_state),
        Route("/api/next", tell_next),
        Route("/api/pairs", tell_pairs),
        Route("/api/decide", decide, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        Route("/image/{position}", image),
    ]


def _answering(answer: Answer) -> Answer:
    """The answer; Refused, with the status of the reason, where there is none."""

    @wraps(answer)
    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except NoPair as failed:
            raise Refused(404 if request.method == "GET" else 400, str(failed)) from failed
        except ImageError as failed:
            raise Refused(415, str(failed)) from failed
        except PicksError as failed:
            raise Refused(507, str(failed)) from failed
        except (DataError, OSError) as failed:
            raise Refused(500, str(failed)) from failed

    return answered


def _shown(path: str, side: int | None) -> tuple[bytes, str]:
    """(bytes, media type) of an image as a browser can show it."""
    if side is None:
        kind = _SHOWABLE.get(image_format(path))
        if kind and os.path.getsize(path) <= _LARGEST:
            return Path(path).read_bytes(), kind
    with _decoding:
        return preview(path, side or _LONGEST_SIDE), "image/jpeg"


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Refused for anything else."""
    text = request.query_params.get(name, str(default))
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise Refused(400, f"{name}={text[:40]}: must be a whole number of {least} or more, {most} at most")
    return value


def _field(body: Mapping[str, Any], name: str, kinds: tuple[type, ...], *default: Any) -> Any:
    """A value of the body. Refused where it is missing without a default, or of another kind."""
    if name not in body and default:
        return default[0]
    value = body.get(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise Refused(400, f'"{name}" is {json.dumps(value)[:60]}: must be {wanted}')
    return value


async def _body(request: Request) -> dict[str, Any]:
    """The object that a page of ours sends. Refused for what a page from elsewhere could have a browser send: without the
    type of JSON, which such a page may not name unasked, or with an origin other than this server's."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"content-type {kind or 'none'}: must be application/json")
    origin, own = request.headers.get("origin"), f"{request.url.scheme}://{request.headers.get('host', '')}"
    if (origin is not None and origin != own) or request.headers.get("sec-fetch-site", "none") not in (
        "none",
        "same-origin",
    ):
        raise Refused(403, f"origin {origin}: decisions are taken from this server's own page only, {own}")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _LONGEST_BODY:
            raise Refused(413, f"more than {_LONGEST_BODY:,} bytes")
    try:
        body = json.loads(bytes(content).decode())
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, f"a {type(body).__name__}, not an object")
    return body


# -- the command ------------------------------------------------------------------------------------------------------


def select(args: argparse.Namespace) -> int:
    """`pycap select`: serve the page until Ctrl-C or SIGTERM, then say what was picked."""
    path = Path(args.results)
    output = Path(args.output) if args.output else path.with_name("picks.jsonl")
    folder = ImageFolder(args.images)
    if output.exists() and path.exists() and output.samefile(path):
        raise DataError(f"{output}: holds the captions themselves; name another --output")
    with Journal(output) as journal:  # before what takes long: another server, or another file, is told at once
        results = _read(path, folder)
        order = _order(results, args)
        selection = Selection(results, order, journal, args.target, args.checkpoint)
        left_out = [f"left out: {told}" for told in results.left_out]
        problems = [f"{output}: {told}; it is left as it is" for told in journal.problems]
        for told in [*left_out, *problems, *selection.warnings]:
            print(told, file=sys.stderr)
        checkpoint = args.checkpoint or results.row(0).checkpoint
        if checkpoint is None:
            print(f"{path} does not say what made it; --checkpoint NAME notes that with each pick", file=sys.stderr)
        command = train_command(output, checkpoint)
        app = server.application([server.page("select.html"), *routes(selection, order=args.order, command=command)])
        with server.listen(server.LOCAL, args.port) as listening:
            address = server.address(listening)
            count = f"{len(selection):,} {'pair' if len(selection) == 1 else 'pairs'}"
            print(f"{count} of {path}, order {args.order}; {selection.summary()}")
            print(f"open {address} (Ctrl-C ends; every decision is on the disk at once){over_ssh(address)}", flush=True)
            if not args.no_browser and _has_screen():
                webbrowser.open(address)
            server.serve(app, listening, grace_s=2.0)
        print(f"\n{selection.summary()}")
        print(f"to go on: the same command; to train on them:\n  {command}")
    return 0


def _read(path: Path, folder: ImageFolder) -> Results:
    size = path.stat().st_size if path.is_file() else 0
    with Display(size // _MB, 0, f"reading {path.name}", "MB") as display:
        return Results(path, folder, lambda done: display.advance(done // _MB, f"reading {path.name}", ""))


def _order(results: Results, args: argparse.Namespace) -> Numbers:
    """The order that the options ask for: first what has an image, of that last what is one of too many with its caption."""
    order = base(results, args.order, args.seed)
    there = order[results.there[order]]
    if per_caption := args.per_caption or (1 if args.order == "diverse" else None):
        there = last(there, capped(results, there, per_caption))
    if args.features:
        there = last(there, _alike(results, there, args))
    return np.concatenate([there, order[~results.there[order]]])


def _alike(results: Results, order: Numbers, args: argparse.Namespace) -> NDArray[np.bool_]:
    """bool [n]: which pairs of an order have an image that looks like an earlier one's; told how many."""
    path, head = Path(args.features), order[:COMPARED]
    alike = np.zeros(len(order), bool)
    with Display(None, 0, f"reading {path.name}", "vectors") as display:
        alike[: len(head)], known = near_duplicates(
            path, results.images[head], args.similarity, lambda done: display.advance(done, f"reading {path.name}", "")
        )
    print(
        f"{path}: has features of {known:,} of the first {len(head):,} images; {int(alike.sum()):,} look like an earlier one "
        "and come last"
    )
    return alike


def train_command(picks: Path, checkpoint: str | None) -> str:
    """What trains from the picks, as it is typed in this folder. What is not known stays a word in capitals: a checkpoint that
    nobody has named, or that is not here, and where Flickr's sets are, which `--stage selected` reads too, unless in `data`."""
    start = checkpoint if checkpoint and Path(checkpoint).exists() else "CHECKPOINT"
    words = ["pycap", "train", "--stage", "selected", "--picks", str(picks), "--init-from", start]
    there = all(Path("data", name).is_dir() for name in ("flickr8k", "flickr30k"))
    return shlex.join(words if there else [*words, "--data", "ROOT"])


def over_ssh(address: str) -> str:
    """For who has come by ssh, how the address is reached from where he sits; else nothing."""
    if not os.environ.get("SSH_CONNECTION"):
        return ""
    port = urlsplit(address).port
    return f"\nfrom where you sit, in another terminal first: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}"


def _has_screen() -> bool:
    """Whether a browser would open where the person is: not at the other end of ssh, and not in the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
