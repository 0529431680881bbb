"""The simulation of scale: pipelines of known rate, kills of known cost, and the page's tables, which are its output."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.report import markers, replace_block
from benchmarks.scale import MACHINES, Machine, Stage

PAGE = scale.ROOT / "docs/scale.md"


@pytest.fixture(scope="module")
def rates() -> dict[str, float]:
    return {name: rate.value for name, rate in scale.load().items()}


def test_the_pages_tables_are_the_scripts() -> None:
    text = PAGE.read_text("utf-8")
    for name, table in scale.tables(scale.load()).items():
        begin, end = markers(f"scale {name}")
        assert text.partition(begin)[2].partition(end)[0].strip() == table, (
            f"python -m benchmarks.scale --update {PAGE}"
        )


def test_the_slowest_pool_sets_the_rate_and_is_busy() -> None:
    # A batch of 10 takes 1 s on one of 4 cores and 0.1 s of a disk: 40 images a second, of 100 that the disk gives.
    stages = [Stage("reading", "disk", 0.1), Stage("decoding", "cores", 0.75), Stage("resizing", "cores", 0.25)]
    rate, busy = scale.simulate(stages, {"disk": 1, "cores": 4}, 10)
    assert rate == pytest.approx(40, rel=0.02) and busy["cores"] == pytest.approx(1, abs=0.02)
    assert busy["disk"] == pytest.approx(0.4, abs=0.02)


def test_what_is_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "VARIATION", 0.0)
    # A core after 9 s in which many may wait at once: with 4 batches under way there is one every 2.5 s.
    stages = [Stage("waiting", "line", 9.0), Stage("working", "core", 1.0)]
    for ahead, every in ((4, 2.5), (8, 1.25), (20, 1.0)):
        rate, busy = scale.simulate(stages, {"line": 20, "core": 1}, 1, ahead=ahead)
        assert rate == pytest.approx(1 / every, rel=0.005) and busy["core"] == pytest.approx(1 / every, rel=0.01)


def test_more_of_the_limit_brings_what_is_said_and_of_anything_else_nothing(rates: dict[str, float]) -> None:
    source = scale.sources(rates)[1]
    machine = Machine("m", cores=16, gpus=1)
    found = scale.outcome(machine, source, rates)
    assert found.limit == "decoding" or found.limit == "Python's lock"
    name = source.decode if found.limit == "decoding" else source.lock
    assert scale.outcome(machine, source, rates | {name: 1e9}).rate == pytest.approx(found.then, rel=0.02)
    assert scale.outcome(machine, source, rates | {"gpu_caption": 1e9}).rate == pytest.approx(found.rate, rel=0.02)


def test_the_limit_moves_from_the_cnn_to_the_shared_file_system(rates: dict[str, float]) -> None:
    source = scale.sources(rates)[1]
    limits = [scale.outcome(machine, source, rates).limit for machine in MACHINES]
    assert limits[:3] == ["CNN and beam"] * 3 and limits[-1] == "reading"
    first, last = (scale.outcome(MACHINES[i], source, rates).rate for i in (0, -1))
    assert last == pytest.approx(rates["shared"] / source.bytes, rel=0.02) and last > 1000 * first


def test_twice_the_machines_take_half_the_time_where_the_file_system_serves_both(rates: dict[str, float]) -> None:
    source = scale.sources(rates)[0]
    one, two = (scale.outcome(replace(MACHINES[1], nodes=n), source, rates).rate for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)


def test_it_says_of_this_machine_what_was_measured_on_it(rates: dict[str, float]) -> None:
    found = scale.outcome(MACHINES[0], scale.sources(rates)[0], rates)
    assert found.rate == pytest.approx(rates["whole_fp32"], rel=0.1)


def test_kills_cost_the_relaunch_and_the_journal_with_resume_and_everything_without(rates: dict[str, float]) -> None:
    values = rates | {"failures": 10.0, "relaunch": 60.0, "start": 30.0, "walk_rows": 1000.0, "list_files": 1e6}
    machine = Machine("m", 8, gpus=2, nodes=2)
    kills, more, again = scale.with_kills(20, machine, 8_000_000, values)
    assert kills == 4 and more == pytest.approx(4 * (60 + 30 + 12 + 1000) / 3600)
    assert again == pytest.approx((exp(4) - 1) * 5 - 20)
    assert scale.with_kills(1000, machine, 1, values)[2] == float("inf")


def test_training_waits_for_gradients_only_where_links_are_slow(rates: dict[str, float]) -> None:
    alone, node, server = MACHINES[3], MACHINES[5], MACHINES[2]
    assert scale.training(alone, rates, 64_000)[1] == 0
    step, wait, hours, limit = scale.training(node, rates | {"gpu_links": 1e9}, 64_000)
    assert limit == "gradients" and wait == pytest.approx(2 * 7 / 8 * 297.4e6 / 1e9 - 32 / rates["gpu_train"])
    assert step == pytest.approx(64 / rates["gpu_train"] + wait) and hours == pytest.approx(64_000 / 512 * step / 3600)
    links = {"gpu_links": 10e9, "net_links": 1e9}
    wait = scale.training(replace(node, nodes=8), rates | links, 64_000)[1]
    assert wait == pytest.approx(2 * 7 / 8 * 297.4e6 * (1 / 10e9 + 1 / 8 / 1e9) - 32 / rates["gpu_train"])
    assert scale.training(node, rates | {"decode_store": 10.0}, 64_000)[3] == "decoding"
    assert scale.training(replace(server, nodes=8), rates, 64_000)[3] == "gradients"


@pytest.mark.parametrize(
    ("hours", "text"),
    [(72, "3.0 days"), (47, "47 h"), (1.5, "1.5 h"), (0.5, "30 min"), (1 / 360, "10 s"), (1e-5, "36 ms"), (0, "0")],
)
def test_times_for_people(hours: float, text: str) -> None:
    assert scale.duration(hours) == text


def test_own_rates_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine.json"
    found = json.loads(scale.MEASURED.read_text("utf-8"))
    found["rates"]["caption_fp32"]["value"] = 0.02
    own.write_text(json.dumps(found))
    page = tmp_path / "page.md"
    page.write_text(replace_block(PAGE.read_text("utf-8"), "an old table", mark="scale bytes"))
    assert scale.main(["--rates", str(own), "--set", "shared=1e12", "--update", str(page)]) == 0
    out = capsys.readouterr().out
    assert (
        "| JPEGs of 100 kB | 2 cores | 0.02 | CNN and beam |" in out
        and "| `shared` | 1,000,000,000,000 | bytes/s | given |" in out
    )
    text = page.read_text("utf-8")
    assert "an old table" not in text and "| JPEGs of 100 kB | 2 cores | 0.02 | CNN and beam |" in text
    assert scale.main(["--rates", str(own), "--set", "sharde=1"]) == 1
    assert "--set sharde=1: NAME=VALUE with one of" in capsys.readouterr().err
    page.write_text("no markers")
    assert scale.main(["--update", str(page)]) == 1 and "scale proof" in capsys.readouterr().err
