"""What the service counts, for Prometheus."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pycap.web.refusals import shown

log = logging.getLogger(__name__)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = CONTENT_TYPE_LATEST
# Paths that are counted one by one, by their first part where there are many; others together.
_PATHS = ("/model/predict", "/model/metadata", "/health", "/metrics", "/openapi.json", "/examples", "/static", "/")


class Metrics:
    """The counters of one service, in a registry of its own."""

    def __init__(self, build: Mapping[str, str], waiting: Callable[[], int], inside: Callable[[], int]) -> None:
        """build: labels of `pycap_build_info`. waiting: images that wait for the model; inside: requests in hand."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("pycap_requests", "Requests that were answered.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "pycap_predict_seconds",
            "From a request for captions to the end of its answer, those that were refused left out.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "pycap_batch_images", "Images given to the model at once.", buckets=_IMAGES, registry=registry
        )
        self.images = Counter("pycap_images", "Images that were captioned.", registry=registry)
        self.model = Counter("pycap_model_seconds", "How long the model was at work.", registry=registry)
        Gauge("pycap_queue_images", "Images that wait for the model.", registry=registry).set_function(waiting)
        Gauge(
            "pycap_requests_in_hand", "Requests that were admitted and not answered.", registry=registry
        ).set_function(inside)
        Gauge("pycap_build_info", "What is served.", tuple(build), registry=registry).labels(**build).set(1)
        ProcessCollector(registry=registry)  # memory, CPU seconds, open files

    def batched(self, size: int, seconds: float) -> None:
        """A batch was captioned."""
        self.batch.observe(size)
        self.images.inc(size)
        self.model.inc(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class Observed:
    """Counts every request, and logs it in a line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()  # what a fault of ours becomes

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            path: str = scope["path"]
            known = next(
                (each for each in _PATHS if path == each or path.startswith(f"{each}/")),
                "/" if path == "/" else "other",
            )
            self.metrics.requests.labels(known, str(status)).inc()
            client = (scope.get("client") or ("-",))[0]
            took = 1000 * (time.perf_counter() - began)
            log.info("%s %s %s %d %.0f ms", client, scope["method"], shown(path), status, took)
