"""`pycap select` from captions to training: what it says, how it ends; the command that it names trains on the picks."""

from __future__ import annotations

import shlex
import signal
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn")

import pycap
from pycap import cli
from pycap.commands import parser
from pycap.config import parse_args
from pycap.data import demo_domains
from pycap.picking.images import ImageFolder
from pycap.picking.results import Results
from pycap.web.select import _order, over_ssh, train_command
from tests.picking import pairs
from tests.train.conftest import _selection
from tests.train.runs import tiny
from tests.web.picking import Select, drawn
from tests.web.test_select import Client

__all__ = ["_selection"]


def client(select: Select) -> Client:
    return Client(int(select.address.rstrip("/").rpartition(":")[2]))


def run(*arguments: str) -> int | str | None:
    """The status, or the message, with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of a person who has trained on COCO and captioned the images that are to be picked from."""
    place = tmp_path_factory.mktemp("person")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        data = demo_domains.generate(Path("data"), share=0.01, size=64)
        pycap.train(tiny(data / "coco", Path("runs/coco"), max_steps=1, val_images_use=1))
        (place / "images").symlink_to(place / "data" / "target")
        assert run("caption", "runs/coco", "images", "--output", "captions.jsonl", "--threads", "1") == 0
    return place


def test_what_is_picked_is_trained_on_by_the_command_that_is_named(
    captioned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    select = Select(captioned, "--checkpoint", "runs/coco", "--order", "diverse", "--target", "3")
    page = client(select)
    for position in (0, 1):
        page.post("/api/decide", position=position, decision="reject")
        page.post(
            "/api/decide", position=position, decision="accept", caption=f"a zebra, number {position}", again=True
        )
    page.post("/api/decide", position=2, decision="accept")
    page.post("/api/undo")
    page.post("/api/decide", position=3, decision="skip")
    command = page.get("/api/state").json["command"]
    said = select.end(signal.SIGINT)
    assert select.process.returncode == 0
    assert "2 of 3 pairs accepted, 0 rejected, 1 skipped: picks.jsonl" in said
    assert said.rstrip().endswith(f"\n  {command}")
    monkeypatch.chdir(captioned)
    name, *arguments = shlex.split(command)
    assert name == "pycap"
    cli.main([*arguments, "--max-steps", "2", "--threads", "1", "--val-images-use", "1"])
    told = " ".join(capsys.readouterr().out.split())
    assert "picks: 2 images to train on, 0 to validate, from picks.jsonl" in told
    parts = pycap.data.datasets.parse("selected", None, Path("picks.jsonl"))
    picked = [e for e in pycap.data.datasets.load(parts, "train")[0] if str(e.image_id).startswith("picks/")]
    assert [e.captions for e in picked] == [("a zebra, number 0",), ("a zebra, number 1",)]


def test_over_ssh_it_says_how_the_page_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    assert ": ssh -L 8765:127.0.0.1:8765 " in over_ssh("http://127.0.0.1:8765/")
    monkeypatch.delenv("SSH_CONNECTION")
    assert over_ssh("http://127.0.0.1:8765/") == ""


def test_options_make_the_order(
    captioned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(captioned)
    assert run("features", "runs/coco", "images", "--output", "f.h5", "--threads", "1") == 0
    results = Results(Path("captions.jsonl"), ImageFolder("images"))
    count, whole, _ = len(results), parser()[0], capsys.readouterr()
    results.there[3] = False

    def order(*options: str) -> list[int]:
        args = whole.parse_args(["select", "captions.jsonl", "--images", "images", *options])
        return _order(results, args).tolist()

    probable = order()
    assert sorted(probable) == list(range(count)) and probable[-1] == 3
    assert np.all(np.diff(results.logprobs[probable[:-1]]) <= 0)
    assert order("--order", "random") != order("--order", "random", "--seed", "1") != probable
    said = results.captions[order("--order", "diverse")[:-1]].tolist()
    assert len(set(said[: len(set(said))])) == len(set(said)) < count - 1
    assert (
        order("--per-caption", "1") == order("--order", "diverse") != order("--order", "diverse", "--per-caption", "99")
    )
    alike = order("--features", "f.h5", "--similarity", "0.000001")  # after a ReLU no cosine is negative
    assert sorted(alike) == list(range(count)) and alike[0] == probable[0]
    assert f"f.h5: has features of {count - 1} of the first {count - 1} images; " in capsys.readouterr().out
    assert order("--features", "f.h5", "--similarity", "1") == probable
    results.close()


@pytest.mark.faults
def test_a_server_that_is_killed_has_kept_all_that_it_confirmed(tmp_path: Path) -> None:
    drawn(tmp_path, 300, side=16)
    select = Select(tmp_path)
    page, confirmed = client(select), dict[int, str]()

    def decide(position: int) -> None:
        answer = page.post("/api/decide", position=position, decision=("accept", "reject")[position % 2])
        confirmed[position] = answer.json["pair"]["file_name"]
        if len(confirmed) == 40:
            select.process.send_signal(signal.SIGKILL)

    with ThreadPoolExecutor(4) as tabs:
        futures = [tabs.submit(decide, position) for position in range(300)]
    lost = [future.exception() for future in futures if future.exception() is not None]
    assert select.process.wait() == -signal.SIGKILL and 40 <= len(confirmed) < 300
    assert all(isinstance(error, (OSError, HTTPException, ValueError)) for error in lost)
    written = {Path(row["file_name"]).name: row["decision"] for row in select.picks()}
    assert {name: ("accept", "reject")[position % 2] for position, name in confirmed.items()}.items() <= written.items()
    select.start()
    state = page.get("/api/state").json
    assert state["accepted"] + state["rejected"] == len(written) == len(select.picks())
    select.end(signal.SIGTERM)
    assert select.process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonl", "--images", "target"], "nowhere.jsonl: cannot be read (No such file or directory)"),
        (["captions.jsonl", "--images", "nowhere"], "nowhere: no such folder; give --images"),
        (["captions.jsonl", "--images", "captions.jsonl"], "captions.jsonl: is a file, not a folder; give --images"),
        (
            ["captions.jsonl", "--images", "target", "--output", "captions.jsonl"],
            "captions.jsonl: holds the captions",
        ),
        (["captions.jsonl", "--images", "target", "--output", "no/picks.jsonl"], "there is no folder no"),
        (["captions.jsonl", "--images", "target", "--features", "captions.jsonl"], "cannot be read as an HDF5 file"),
        (["target/0/00.png", "--images", "target"], "00.png: no captions in it"),
    ],
)
def test_what_cannot_be_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    pairs.write(pairs.images(tmp_path).parent / "captions.jsonl", [pairs.row(n) for n in range(pairs.COUNT)])
    monkeypatch.chdir(tmp_path)
    message = str(run("select", *arguments, "--no-browser"))
    assert message.startswith("pycap select: error: ") and said in message and "\n" not in message
    assert not (tmp_path / "picks.jsonl").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--target", "0"], ["--similarity", "0"], ["--similarity", "1.1"], ["--port", "65536"], ["--order", "any"]],
)
def test_wrong_options_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    assert run("select", "captions.jsonl", "--images", str(tmp_path), *arguments) == 2


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycap.web.find_spec", lambda name: None)
    message = str(run("select", "captions.jsonl", "--images", "target"))
    assert 'pip install "pycap-captioning[web]"' in message


def test_the_command_leaves_open_what_nobody_has_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = ["pycap", "train", "--stage", "selected", "--picks"]
    assert shlex.split(train_command(Path("my picks.jsonl"), None)) == [
        *start, "my picks.jsonl", "--init-from", "CHECKPOINT", "--data", "ROOT"
    ]  # fmt: skip
    for folder in ("runs/x/best", "data/flickr8k", "data/flickr30k"):
        Path(folder).mkdir(parents=True)
    made = shlex.split(train_command(Path("picks.jsonl"), "runs/x/best"))
    assert made == [*start, "picks.jsonl", "--init-from", "runs/x/best"]
    assert parse_args(made[2:]).picks == Path("picks.jsonl")
    assert "CHECKPOINT" in train_command(Path("picks.jsonl"), "runs/of/another/machine")
