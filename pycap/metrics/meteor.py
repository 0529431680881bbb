"""METEOR 1.5 (Denkowski and Lavie 2014), the score that COCO's evaluation prints: the Java program of pycocoevalcap."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO

TIMEOUT = 600.0  # seconds; 5,000 captions take less than one minute
_JAR = "meteor-1.5.jar"


class MeteorUnavailable(OSError):
    """METEOR cannot be computed here; the text says why, and what helps."""


def meteor(
    captions: Mapping[Hashable, Sequence[str]],
    references: Mapping[Hashable, Sequence[Sequence[str]]],
    timeout: float = TIMEOUT,
) -> tuple[float, dict[Hashable, float]]:
    """METEOR of the corpus, whose statistics are pooled, and of each image, all in [0, 1].

    Args:
        captions: words by image id. references: the words of human captions by image id, one or more for each of
            `captions`; others are left out. timeout: seconds after which the program is ended.
    Raises:
        MeteorUnavailable: no Java, or no pycocoevalcap, or a program that fails or takes longer.
    """
    folder = _folder()
    segments = [
        "SCORE ||| " + " ||| ".join(" ".join(words).replace("|||", "") for words in (*references[i], captions[i]))
        for i in captions
    ]
    # The paraphrases are named since the program, left alone, does not find them in a folder with a space in its name.
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", _JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    command += ["-a", str(Path("data", "paraphrase-en.gz"))]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        )
        assert process.stdin and process.stdout
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout, expire)
        timer.start()
        try:
            statistics = _ask(process.stdin, process.stdout, segments, len(segments))
            values = _ask(process.stdin, process.stdout, [" ||| ".join(["EVAL", *statistics])], len(segments) + 1)
        except EOFError:
            process.wait()
            if expired.is_set():
                reason = f"was ended after {timeout:g} s; score fewer captions at a time, or give a longer timeout"
            else:
                errors.seek(0)
                told = errors.read().decode("utf-8", "replace").strip().splitlines()
                reason = f"failed with exit status {process.returncode}: {told[0] if told else 'it said nothing'}"
            raise MeteorUnavailable(f"{folder / _JAR} {reason}") from None
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # what it did not read is lost with it
                process.stdin.close()
    *each, pooled = map(float, values)
    return pooled, dict(zip(captions, each, strict=True))


def meteor_missing() -> str:
    """What METEOR lacks here, with the remedy; empty where nothing is missing."""
    try:
        _folder()
    except MeteorUnavailable as error:
        return str(error)
    return ""


def _folder() -> Path:
    """Where pycocoevalcap keeps the program; MeteorUnavailable where it or Java is missing."""
    if shutil.which("java") is None:
        raise MeteorUnavailable(
            "no java on PATH: install a Java runtime (on Debian: apt-get install default-jre-headless)"
        )
    package = importlib.util.find_spec("pycocoevalcap")
    for place in (package.submodule_search_locations or ()) if package else ():
        if (Path(place) / "meteor" / _JAR).is_file():
            return Path(place) / "meteor"
    raise MeteorUnavailable("pycocoevalcap, which brings the program, is not installed: pip install pycocoevalcap")


def _ask(stdin: IO[str], stdout: IO[str], questions: Sequence[str], answers: int) -> list[str]:
    """Write lines while as many as are promised are read: neither pipe can fill and stop the other."""

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # the program has ended: the reader sees it, and says why
            stdin.writelines(f"{question}\n" for question in questions)
            stdin.flush()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    lines = []
    for _ in range(answers):
        line = stdout.readline()
        if not line:
            raise EOFError
        lines.append(line.strip())
    writer.join()
    return lines
