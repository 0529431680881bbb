"""The command `pycap serve`: a model behind a REST service, and a page to try it."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from pycap import checkpoint
from pycap.backends import select, set_threads
from pycap.caption import load
from pycap.device import cpu_count
from pycap.web import examples
from pycap.web.metrics import Observed
from pycap.web.neighbours import be_considerate
from pycap.web.server import LOCAL_NAMES, address, application, listen, page, serve
from pycap.web.service import Limits, Service


def serve_checkpoint(args: argparse.Namespace) -> int:
    """`pycap serve`: answers until a signal, which lets it finish what it has taken; 0 then."""
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    be_considerate()
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # such an image is refused, not logged
    limits = Limits(
        args.beam_size,
        args.max_beam_size,
        args.max_batch,
        args.queue,
        args.max_bytes,
        args.max_pixels,
        args.timeout,
    )
    with listen(
        args.host, args.port
    ) as listening:  # before the model: it takes longer to load than to find a port taken
        select(args.device, args.backend)
        set_threads(args.threads or cpu_count())
        folders = [checkpoint.find(path) for path in (args.checkpoint, *args.ensemble)]
        captioner = load(folders, args.precision)
        service = Service(captioner, limits, " + ".join(map(_name, folders)), list(captioner.digests), args.max_length)
        offered = examples.offered(args.examples, captioner.vocab.words)
        with service:
            local = args.host in LOCAL_NAMES
            said = f"{service.name}: {address(listening)}{'' if local else ', for all who reach this machine'}"
            serve(
                build(service, offered, LOCAL_NAMES if local else ("*",), args.cors),
                listening,
                grace_s=limits.timeout_s + 1,
                started=lambda: print(said, flush=True),
                stopping=service.drain,
            )
    return 0


def build(
    service: Service,
    offered: list[examples.Example],
    hosts: tuple[str, ...] = LOCAL_NAMES,
    origins: tuple[str, ...] | list[str] = (),
) -> Starlette:
    """The service's application, its page included. hosts: as of `server.application`. origins: pages elsewhere that may call
    it."""
    outermost = [Middleware(Observed, metrics=service.metrics)]
    if origins:
        outermost.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"]))
    return application(
        [page("serve.html"), *service.routes(), *examples.routes(offered)], hosts=hosts, outermost=outermost
    )


def _name(folder: Path) -> str:
    """What a checkpoint is called: its run."""
    folder = folder.resolve()
    return folder.parent.name if folder.name in ("best", "last") else folder.name
