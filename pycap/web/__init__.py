"""Pages served on this machine: picking pairs (`pycap select`), a model to try and to call (`pycap serve`).

| file | its job |
|---|---|
| `server.py` | the socket, uvicorn, the static files |
| `connections.py` | a client's connection: what stands still is closed |
| `middleware.py` | what every request goes through |
| `refusals.py` | errors: a status, and a reason in JSON |
| `select.py` | picking pairs: its page's answers, and the command |
| `serve.py` | the command `pycap serve` |
| `neighbours.py` | the CPUs and the memory that it shares |
| `service.py` | a captioner that answers requests |
| `admission.py` | how many requests are taken at once |
| `uploads.py` | a form is read within limits |
| `decoding.py` | its image is looked at, then decoded |
| `batches.py` | the model's thread, and what waits for it |
| `metrics.py` | counters, for Prometheus |
| `openapi.py` | the service for programs |
| `examples.py` | the pictures that the demo page offers |
"""

from __future__ import annotations

from importlib.util import find_spec

#: Modules of the extra `web` -> the distribution that brings each.
_NEEDED = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "h11": "h11",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


class WebError(RuntimeError):
    """Pages cannot be served; the text says what is missing, and the remedy."""


def require() -> None:
    """WebError, with the remedy, where a package that serving needs is missing."""
    missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise WebError(
            f'{", ".join(missing)} not installed, which serving pages needs: pip install "pycap-captioning[web]"'
        )
