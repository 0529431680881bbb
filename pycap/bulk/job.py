"""A job of captioning: begun, continued, stopped and finished, with nothing done twice and nothing lost."""

from __future__ import annotations

import glob
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pycap.bulk.journal import (
    Header,
    Journal,
    JournalError,
    Standing,
    begun,
    differences,
    read_header,
    read_rows,
    standing,
    unwritable,
)
from pycap.bulk.share import WHOLE, Passed, Shard, Share
from pycap.bulk.target import Kept, Target
from pycap.data import DataError
from pycap.data.forms import FILE_FORMATS, FORMATS, check_separator, image_id
from pycap.data.inputs import Inputs
from pycap.data.items import Item, Reference
from pycap.progress import Display
from pycap.signals import Stopping

_TOLD = 10  # failures that are printed; all are in the file of failures
_NAMED = 20  # arguments that a header tells
_WAITING = 16  # batches between the thread that computes and the one that writes

Row = dict[str, Any]
#: What a job's header has for whoever goes on with it, and of which kinds.
_HEADER: dict[str, tuple[type, ...]] = {
    "batch_size": (int,), "shard": (str,), "inputs": (list,), "skip_existing": (dict, bool, type(None)), "_format": (str,),
    "_separator": (str,), "_output": (str,),
}  # fmt: skip


class Captioned(Protocol):
    """What is needed of `captioner.Caption`."""

    name: str
    error: str

    def row(self, drawn: bool) -> Row: ...


#: Items -> their captions in order, `batch_size` at a time.
Batches = Callable[[Iterable[Item]], Generator[Sequence[Any], None, None]]


@dataclass(frozen=True)
class Job:
    """What is to be captioned, how, and where to. `options`: JSON values on which captions depend; a job continues only with
    the same. drawn: captions are sampled. what: said beside the bar."""

    inputs: Inputs
    target: Target
    batches: Batches
    batch_size: int
    options: Row = field(default_factory=dict)
    drawn: bool = False
    shard: Shard = WHOLE
    resume: bool = False
    skip_existing: bool = False
    what: str = "captioning"

    @property
    def journal(self) -> Path:
        """FILE.partial, or the shard's result."""
        return shard_file(self.target, self.shard) if self.shard.count > 1 else self.target.partial


def shard_file(target: Target, shard: Shard) -> Path:
    """The journal of one shard."""
    return target.file.with_name(f"{target.file.name}.shard-{shard.number}-of-{shard.count}")


class NoImages(DataError):
    """Nothing to caption; what was there before stays."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(f"{', '.join(_named(inputs))}: no images in it; check what is named")


class Stopped(Exception):
    """Ctrl-C or SIGTERM, `signal`; all that was done is in the journal, of `done` images at `path`."""

    def __init__(self, signal: int, path: Path, done: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal, self.path, self.done = signal, path, done


def run(job: Job) -> Standing | None:
    """Do what is left of a job. Returns what was done, by earlier calls too; None where nothing was left, which is said.

    Stopped after a signal; JournalError where there is a journal that this job would not continue, DataError for images that
    the form would confuse, or that have a text file which it would replace.
    """
    target, path = job.target, job.journal
    if _is_complete(job):
        print(f"{target}: is complete; for images that are new: --skip-existing; to make it anew, leave --resume out")
        return None
    began = _began(job)
    complete = began is not None and standing(path).complete
    skip = job.skip_existing or (bool(began["skip_existing"]) if began else job.resume and target.beside)
    kept = target.kept() if skip and not complete else None
    header = {**job.options, "batch_size": job.batch_size, "shard": str(job.shard), "inputs": _named(job.inputs)}
    header["skip_existing"] = began["skip_existing"] if began and complete else _stays(kept, skip and target.beside)
    header |= {"_format": target.form, "_separator": target.separator, "_output": str(target.path or "")}
    if began is None:
        _agree_with_shards(job, header)
    share = Share(job.inputs, job.batch_size, job.shard, target.lacks(kept) if skip else None)
    with Journal(path, header) as journal:
        if not complete:
            target.check(share.wanted)
            if began is None and not skip:
                target.require_new(share.wanted)
            total = share.count()
            if skip and total == 0 and began is None and job.shard.count == 1:
                if job.inputs.count() == 0:
                    raise NoImages(job.inputs)
                print(f"{target}: has all of these images already")
                return None
            passed = Passed()
            stopped = _caption(job, journal, share, total, passed)
            if stopped:
                raise Stopped(stopped, path, journal.standing.rows)
            if not skip and not passed.images:
                raise NoImages(job.inputs)
            journal.complete(passed.images, passed.digest())
        if job.shard.count == 1:
            finish(target, lambda: read_rows(path), read_job(path), path)
            path.unlink()
        return journal.standing


def finish(target: Target, rows: Callable[[], Iterator[Row]], header: Header, journal: Path) -> None:
    """Write the captions of journals where they are to go. rows: of all of them, from their beginning at each call.

    JournalError where that is not possible, DataError where the form is another than the job was begun with and would confuse
    images.
    """
    if (target.form, target.separator) != (header["_format"], header["_separator"]):
        if header["skip_existing"]:
            raise JournalError(
                f"{journal}: adds to a file of --format {header['_format']}, and {target.form} is asked for"
            )
        target.check(lambda: (Reference(row["file_name"]) for row in rows() if "error" not in row))
    try:
        target.finish(rows(), header["skip_existing"])
    except OSError as error:
        path = Path(error.filename).parent if target.beside and error.filename else target.file
        raise unwritable(path, error, journal) from error


def read_job(path: Path) -> Row:
    """The header of a job's journal. JournalError where there is none, or something is missing in it or of another kind."""
    header = read_header(path)
    for key, kinds in _HEADER.items():
        if key not in header or type(header[key]) not in kinds:
            raise JournalError(
                f"{path}: its header is damaged: {key!r} is missing or no {kinds[0].__name__}; remove the file"
            )
    kept = header["skip_existing"]
    try:
        Shard.parsed(header["shard"])
        check_separator(header["_separator"])
        sound = header["batch_size"] > 0 and header["_format"] in FORMATS
        if isinstance(kept, dict):
            sound = sound and type(kept["size"]) is int and kept["size"] >= 0 and type(kept["sha256"]) is str
        if kept is True:  # text files beside the images are kept, and there is nothing else to know of them
            sound = sound and header["_format"] not in FILE_FORMATS
    except (ValueError, KeyError) as error:
        raise JournalError(f"{path}: its header is damaged ({error}); remove the file") from error
    if not sound:
        raise JournalError(f"{path}: its header is damaged: no job has such numbers; remove the file")
    return header


def shard_files(target: Target) -> list[Path]:
    """What there is of the journals of shards."""
    return sorted(target.file.parent.glob(f"{glob.escape(target.file.name)}.shard-*-of-*"))


def _is_complete(job: Job) -> bool:
    """Whether the job that is to be continued is there as a whole."""
    unfinished = job.target.partial.exists() or shard_files(job.target)
    return (
        job.resume and not job.skip_existing and not unfinished and not job.target.beside and job.target.file.exists()
    )


def _began(job: Job) -> Row | None:
    """The header of the journal that the job continues; None where it begins. JournalError where neither is possible."""
    path, target = job.journal, job.target
    foreign = [
        other
        for other in [target.partial, *shard_files(target)]
        if other.exists()
        and (not other.name.endswith(f"-of-{job.shard.count}") if job.shard.count > 1 else other != path)
    ]
    if foreign:
        there = "1" if foreign[0] == target.partial else foreign[0].name.rpartition("-of-")[2]
        raise JournalError(
            f"{foreign[0]}: is of a job that was divided otherwise ({_division(there)}) than this one "
            f"({_division(str(job.shard.count))}); finish it as it was begun, or remove it"
        )
    if not begun(path):
        return None
    if job.resume:
        return read_job(path)
    if not job.skip_existing or job.shard.count > 1:
        raise JournalError(
            f"{path}: is there already, of a job that is not {'merged' if job.shard.count > 1 else 'done'}; "
            "--resume goes on with it, and to begin anew remove it"
        )
    with Journal(path, read_header(path)):  # its captions are kept, whatever it was begun with
        kept = target.kept()
        lacks = target.lacks(kept)
        header = {"skip_existing": _stays(kept, target.beside), "_format": target.form, "_separator": target.separator}
        finish(target, lambda: (row for row in read_rows(path) if lacks(row["file_name"])), header, path)
        print(f"{path}: what {target} lacked of its captions is there now")
        path.unlink()
    return None


def _division(count: str) -> str:
    return "one process" if count == "1" else f"{count} shards"


def _agree_with_shards(job: Job, header: Row) -> None:
    """JournalError where a shard that is there was begun otherwise: merging would refuse this one when all is captioned."""
    for other in shard_files(job.target) if job.shard.count > 1 else ():
        if begun(other):
            there = read_header(other)
            now = {**header, "journal": there["journal"], "shard": there["shard"]}
            for what, before, here in differences(there, now):
                raise JournalError(
                    f"{other}: is of the same job, and its {what} is {before}, but here {here}: shards are merged only where "
                    "all are begun alike; give what was given there, or remove it"
                )


def _stays(kept: Kept | None, beside: bool) -> Any:
    """What of the target stays as it is, as a header has it."""
    return {"size": kept.size, "sha256": kept.sha256} if kept else True if beside else None


def _named(inputs: Inputs) -> list[str]:
    """What the command line named, shortened where it is much."""
    named = list(inputs.named)
    rest = len(named) - _NAMED
    return named if rest <= 0 else [*named[:_NAMED], f"and {rest} more: {inputs.digest()}"]


def _caption(job: Job, journal: Journal, share: Share, total: int | None, passed: Passed) -> int | None:
    """Caption what the journal lacks. Returns the signal that stopped it, or None."""
    what = f"{job.what}, shard {job.shard}" if job.shard.count > 1 else job.what
    before = done = journal.standing.rows
    failed, told = journal.standing.failed, 0
    first = done - done % job.batch_size  # the batch in which the job was stopped is made again as a whole
    with (
        Stopping() as stopping,
        Display(total, done, what, "images") as display,
        _Writing(journal) as writing,
        closing(job.batches(_items(share, journal, first, passed))) as batches,
    ):
        for number, captions in enumerate(batches):
            rows = [row(each, job.drawn) for each in captions][0 if number else done - first :]
            writing.add(rows)
            done += len(rows)
            for lost in (each for each in rows if "error" in each):
                failed += 1
                told += 1
                if told <= _TOLD:
                    print(f"{lost['file_name']}: {lost['error']}", file=sys.stderr)
            note = f"{(done - before) / max(display.elapsed, 1e-9):.1f} images/s"
            display.advance(done, what, f"{note}  {failed} failed" if failed else note)
            if stopping.number is not None:
                return stopping.number
    return None


def row(caption: Captioned, drawn: bool) -> Row:
    """An image's row in a journal: its caption, or why it has none."""
    if caption.error:
        return {"file_name": caption.name, "error": caption.error}
    return {"image_id": image_id(caption.name, "jsonl"), "file_name": caption.name, **caption.row(drawn)}


def _items(share: Share, journal: Journal, first: int, passed: Passed) -> Iterator[Item]:
    """The share's items from number `first` on, while all that are in the journal are compared with it."""
    rows, done = read_rows(journal.path), journal.standing.rows
    position = 0
    remedy = (
        "put them back as they were; or, without --resume, --skip-existing keeps these captions and makes what lacks"
    )
    for position, reference in enumerate(share.references(passed), 1):
        if position <= done and (name := next(rows)["file_name"]) != reference.name:
            raise JournalError(
                f"{journal.path}: the inputs have changed: its image number {position} is {name}, and now that is "
                f"{reference.name}; {remedy}"
            )
        if position > first:
            yield reference.item()
    if position < done:
        raise JournalError(
            f"{journal.path}: the inputs have changed: it has {done} images, and now there are {position}; {remedy}"
        )


class _Writing:
    """A thread that writes rows into a journal while others are made. Left by whatever way, what was added is written."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: queue.Queue[list[Row] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="pycap-journal")

    def __enter__(self) -> _Writing:
        self._thread.start()
        return self

    def add(self, rows: list[Row]) -> None:
        """Have rows written. Raises what an earlier write raised."""
        if self._error:
            raise self._error
        self._waiting.put(rows)

    def _write(self) -> None:
        while (rows := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self._journal.add(rows)
            except BaseException as error:  # raised where the rows come from
                self._error = error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._error and error is None:
            raise self._error
