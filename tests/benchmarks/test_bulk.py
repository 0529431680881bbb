"""The proof of captioning in bulk: on a tiny job it holds, and each fault that it looks for is found where it is planted."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from benchmarks import bulk, bulk_images
from benchmarks.bulk import Fault, Growing, Job
from pycap.data.images import ImageError, decode_image

#: In pycap's place: a row a millisecond, continued after the last one; argv[-1] plants a fault.
STAND_IN = """
import json, sys, time
from pathlib import Path
fault = sys.argv[-1]
output = Path(sys.argv[sys.argv.index("--output") + 1])
journal = output.with_name(output.name + ".partial")
done = 0
if "--resume" in sys.argv:
    kept = journal.read_bytes()
    kept = kept[: kept.rfind(b"\\n") + 1]
    journal.write_bytes(kept)
    done = kept.count(b"\\n") + {"doubled": -1, "lost": 1}.get(fault, 0)
with open(journal, "a") as file:
    for number in range(done, 200):
        if fault == "torn" and number == done and done:
            file.write('{"half')
        file.write(json.dumps({"file_name": number}) + "\\n")
        file.flush()
        if fault != "hasty":
            time.sleep(0.001)
journal.rename(output)
output.with_name(output.stem + ".failed.jsonl").touch()
print(json.dumps({"seconds": 1.0, "peak_mib": 1.0}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bulk.tiny_checkpoint(tmp_path_factory.mktemp("bulk") / "run")


def stand_in(monkeypatch: pytest.MonkeyPatch, fault: str) -> Job:
    monkeypatch.setattr(bulk, "_PYCAP", STAND_IN)
    # Options come before what is added to resume, and the fault has to be last.
    job = Job(Path("checkpoint"), ("images",), ())
    started = Job.start
    monkeypatch.setattr(Job, "start", lambda self, output, *more: started(self, output, *more, fault))
    return job


def test_a_job_killed_twice_and_one_in_shards_give_the_bytes_of_one_in_one_go(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bulk.json"
    how = ["--images", "60", "--kills", "2", "--threads", "1", "--formats", "csv", "--place", str(tmp_path / "place")]
    assert bulk.main([*how, "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    record = json.loads(out.read_text("utf-8"))
    assert record["identical"] and record["kills"] == len(record["lines_at_kills"]) == 2
    assert record["peak_ratio"] < 1.1 and record["images"]["60"]["broken"] == 1
    assert "60 images, 2 kills: the same bytes" in capsys.readouterr().out
    shown = bulk.table(record)
    at = ", ".join(str(lines - 1) for lines in record["lines_at_kills"])
    assert f"| 60, killed 2 times |  |  | the same bytes; killed after {at} images |" in shown
    assert f"| 60, in one go | {record['uninterrupted']['60']['peak_mib']:.1f} MiB |" in shown
    results = tmp_path / "place/results"
    names = [json.loads(line)["file_name"] for line in (results / "killed.jsonl").read_text("utf-8").splitlines()]
    assert len(set(names)) == 59 and not list(results.glob("*.partial")) and not list(results.glob("*shard*"))


def test_the_committed_record_is_of_twenty_thousand_images_and_ten_kills() -> None:
    record = json.loads((bulk.ROOT / "benchmarks/results/bulk.json").read_text("utf-8"))
    assert record["identical"] and record["kills"] == len(record["lines_at_kills"]) >= 10
    assert {"2000", "20000"} == set(record["uninterrupted"]) and record["peak_ratio"] <= 1 + bulk.MOST_GROWTH
    assert record["images"]["20000"]["photographs"] > 7000 and tuple(record["formats"]) == bulk.FORMATS


def test_memory_that_grows_is_a_fault(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bulk, "MOST_GROWTH", -0.9)
    how = ["--images", "34", "--kills", "1", "--threads", "1", "--formats", "--place", str(tmp_path / "place")]
    assert bulk.main([*how, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out.json")]) == 1
    assert "memory grows with the images: " in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_captions_that_are_missing_are_a_fault(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_images, "_EVERY_BROKEN", 7)
    with pytest.raises(Fault, match="28 captions and 4 failures; of 32 images 3 are broken"):
        bulk_images.make(tmp_path / "images-32", 32)
        manifest = tmp_path / "images-32" / bulk_images.MANIFEST
        manifest.write_text(manifest.read_text().replace('"broken": 4', '"broken": 3'))
        bulk.prove(tmp_path, checkpoint, 32, 1, options=("--threads", "1"), formats=())


def test_kills_come_at_different_moments_and_the_rest_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, straight, killed = stand_in(monkeypatch, "none"), tmp_path / "straight.jsonl", tmp_path / "killed.jsonl"
    job.run(straight)
    seen = bulk.killed(job, killed, 4, 200, 1, 0.2)
    assert len(seen) == 4 and seen == sorted(seen) and seen[0] < seen[-1] <= 200
    assert bulk.difference(straight, killed) == ""


@pytest.mark.parametrize(
    ("fault", "told"), [("doubled", "line "), ("lost", "line "), ("torn", "line "), ("hasty", "5 times the job ended")]
)
def test_what_a_kill_may_break_is_found(fault: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, straight, killed = stand_in(monkeypatch, fault), tmp_path / "straight.jsonl", tmp_path / "killed.jsonl"
    job.run(straight)
    try:
        bulk.killed(job, killed, 2, 150 if fault != "hasty" else 10_000, 1, 0.2)
        found = bulk.difference(straight, killed)
    except Fault as error:
        found = str(error)
    assert told in found and str(killed) in found


def test_results_differ_by_bytes_lines_failures_and_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    for path in (one, other):
        path.write_text("a\nb\n")
        bulk.failures(path).write_text("c\n")
    assert bulk.difference(one, other) == ""
    other.write_text("a\nB\n")
    assert bulk.difference(one, other) == f"{other}: line 2 is b'B\\n', and in one.jsonl b'b\\n'"
    other.write_text("a\n")
    assert bulk.difference(one, other) == f"{other}: 1 lines, and in one.jsonl 2"
    other.write_text("a\nb\n")
    bulk.failures(other).write_text("d\n")
    assert "other.failed.jsonl: line 1" in bulk.difference(one, other)
    bulk.failures(other).unlink()
    assert bulk.difference(one, other) == f"{bulk.failures(other)}: is not there"
    for folder, text in (("x", "a"), ("y", "a"), ("z", "b")):
        (tmp_path / folder / "below").mkdir(parents=True)
        (tmp_path / folder / "below/1.txt").write_text(text)
    assert bulk.difference(tmp_path / "x", tmp_path / "y") == ""
    assert "1.txt: line 1" in bulk.difference(tmp_path / "x", tmp_path / "z")
    (tmp_path / "y/2.txt").touch()
    assert "2.txt: is not there" in bulk.difference(tmp_path / "x", tmp_path / "y")


def test_a_growing_file_is_counted_as_it_grows_and_when_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Growing(path)
    assert journal.look() == 0
    path.write_text("a\nb\nha")
    assert journal.look() == 2
    path.write_text("a\n")
    assert journal.look() == 1
    with open(path, "a") as file:
        file.write("b\nc\n")
    assert journal.look() == 3


def test_images_are_those_of_a_larger_set_and_as_many_broken_as_said(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    small = bulk_images.make(tmp_path / "small", 30, scene_size=48)
    (tmp_path / "small/folder/0000/000000001.jpg").rename(photographs / "one.jpg")
    large = bulk_images.make(tmp_path / "large", 420, photographs, scene_size=48)
    files = {path.name: path for path in tmp_path.glob("large/**/0*.*g")}
    assert large.photographs == 1 and files["000000001.jpg"].read_bytes() == (photographs / "one.jpg").read_bytes()
    for path in tmp_path.glob("small/**/0*.*g"):
        assert files[path.name].read_bytes() == path.read_bytes()
    for name in ("shard-0.tar", "shard-1.tgz"):
        with tarfile.open(tmp_path / "large" / name) as archive:
            archive.extractall(tmp_path / name.replace(".", "-"), filter="data")
            files |= {path.name: path for path in (tmp_path / name.replace(".", "-")).rglob("0*.*g")}
    assert len(files) == large.count == 420
    broken = 0
    for path in files.values():
        try:
            decode_image(path, 32)
        except ImageError:
            broken += 1
    assert broken == large.broken == len(bulk_images.BROKEN) + 1 and small.broken == 1
    assert bulk_images.make(tmp_path / "large", 420, photographs, scene_size=48) == large
    with pytest.raises(FileExistsError, match="photographs: holds something else"):
        bulk_images.make(photographs, 3)
