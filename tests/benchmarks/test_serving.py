"""The load on `pycap serve`: what is counted, that Retry-After is heeded, that each fault is one, and the committed record."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hostile, serving
from benchmarks.serving import Load
from tests.benchmarks.services import WELL, StubService, http


def load(stub: StubService, clients: int = 3, seconds: float = 0.4) -> Load:
    async def run() -> Load:
        async with stub.running():
            return await serving.ask(stub, [b"jpeg"], clients, seconds, warm_s=0.1)  # type: ignore[arg-type]

    return asyncio.run(run())


def test_captions_are_counted_and_nothing_is_wrong() -> None:
    stub = StubService(lambda number: http(200))
    found = load(stub)
    assert not found.faults and set(found.statuses) == {200}
    assert 0 < len(found.latencies) <= found.statuses[200] == stub.requests
    record = found.record()
    assert record["captions_per_s"] == pytest.approx(len(found.latencies) / 0.4, abs=0.06)
    assert record["batches"]["images_a_batch"] == 4 and record["memory_mib"]["first_third"] == 50


def test_a_client_that_is_turned_away_comes_again_when_it_was_told_to() -> None:
    found = load(StubService(lambda number: http(503, Retry_After="1")))
    assert found.statuses == {503: 3} and not found.faults  # one each: a second is more than the time there is


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (http(503), "503 with Retry-After ''"),
        (http(503, Retry_After="0"), "503 with Retry-After '0'"),
        (http(200, {**WELL, "predictions": []}), "200 without predictions"),
        (http(500), "500: "),
        (http(429, Retry_After="1"), "429: "),
        (b"", "Dropped: "),
    ],
)
def test_any_other_answer_is_a_fault(answer: bytes, told: str) -> None:
    found = load(StubService(lambda number: answer if number == 2 else http(200)))
    assert [fault[: len(told)] for fault in found.faults] == [told]


def test_the_record_of_a_model_is_kept_beside_those_of_others_unless_there_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = {
        name: load(StubService(lambda number: http(200)), 1).record()
        for name in ("batched", "max_batch_1", "one_client")
    }
    faults: list[str] = []
    asked: list[Any] = []

    def measure(*given: Any, **how: Any) -> tuple[dict[str, Any], list[str]]:
        asked.append((given, how))
        ratios = {"over_one_client": 4.56, "over_max_batch_1": 5.1}
        return {**loads, "ratios": ratios, "clients": 1, "options": how["options"]}, faults

    monkeypatch.setattr(serving, "measure", measure)
    out = tmp_path / "serving.json"
    out.write_text(json.dumps({"models": {"another": {"kept": True}}}), "utf-8")
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    how = ["--checkpoint", "runs/tiny", "--queue", "8", "--seconds", "2", "--data", str(tmp_path), "--out", str(out)]
    assert serving.main(how) == 0
    models = json.loads(out.read_text("utf-8"))["models"]
    assert models["another"] == {"kept": True} and models["tiny"]["options"] == ["--queue", "8"]
    ((checkpoint, images),), options = asked[0][:1], asked[0][1]
    assert checkpoint == Path("runs/tiny").absolute() and images == [b"jpeg"] and options["seconds"] == 2
    assert "| tiny | " in (shown := capsys.readouterr().out) and "| 4.6x |" in shown
    faults.append("batched: 500: no")
    kept = out.read_text("utf-8")
    assert serving.main([*how, "--name", "other"]) == 1
    assert out.read_text("utf-8") == kept and "batched: 500: no" in capsys.readouterr().err


def test_the_committed_records_show_what_they_are_to_show() -> None:
    models = json.loads(serving.RESULTS.read_text("utf-8"))["models"]
    assert {"photographs, 64 px", "demo, 64 px", "VGG16 at 224 px"} <= set(models)
    for record in models.values():
        batched, memory = record["batched"], record["batched"]["memory_mib"]
        assert record["clients"] == 200 and batched["seconds"] == 30
        assert set(batched["statuses"]) == {"200", "503"}
        assert memory["last_third"] <= memory["first_third"] * (1 + serving.MOST_GROWTH)
    assert min(models["photographs, 64 px"]["ratios"].values()) >= 3
    assert serving.table(models) in (serving.ROOT / "docs/serving.md").read_text("utf-8")
    attacked = json.loads(hostile.RESULTS.read_text("utf-8"))
    assert attacked["faults"] == [] and attacked["attacks"]["changed images"]["requests"] == 10_000
