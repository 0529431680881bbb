"""Turns alternate, their number and length follow the budget, and quantiles are those of all calls."""

from __future__ import annotations

from benchmarks.timing import Budget, Samples, alternate, calls_in_a_turn


def test_sides_alternate_and_the_order_turns_round() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> object:
        def turn(calls: int) -> list[float]:
            order.append(name)
            return [seconds] * calls

        return turn

    budget = Budget(rounds=3, most_rounds=3, seconds=0, turn_s=1.0)
    turns = {"a": side("a", 0.5), "b": side("b", 3.0)}
    samples = alternate(turns, {"a": 0.5, "b": 3.0}, budget)  # type: ignore[arg-type]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert samples["a"].seconds == [0.5] * 6, "two calls of 0.5 s make a turn of 1 s"
    assert samples["b"].seconds == [3.0] * 3, "a turn has one call at least"


def test_rounds_go_on_until_the_time_is_up() -> None:
    rounds = []
    quick = Budget(rounds=2, most_rounds=50, seconds=60, turn_s=0)
    alternate({"a": lambda n: [1.0]}, {"a": 1.0}, quick, lambda round_, samples: rounds.append(round_))
    assert rounds == list(range(50)), "nothing has used the minute up"
    alternate({"a": lambda n: rounds.append(-1) or [1.0]}, {"a": 1.0}, Budget(2, 50, seconds=-1, turn_s=0))  # type: ignore[func-returns-value]
    assert rounds[50:] == [-1, -1], "no time at all: only the rounds that there must be"


def test_two_rounds_are_enough_of_a_long_work() -> None:
    rounds: list[float] = []
    long = Budget(rounds=7, most_rounds=9, seconds=60, turn_s=0, long_s=-1)
    alternate({"a": lambda n: [1.0]}, {"a": 1.0}, long, lambda round_, samples: rounds.append(round_))
    assert rounds == [0, 1]


def test_calls_in_a_turn_are_bounded() -> None:
    budget = Budget(turn_s=0.1)
    assert calls_in_a_turn(0.01, budget) == 10
    assert calls_in_a_turn(5.0, budget) == 1
    assert calls_in_a_turn(0.0, budget) == 200


def test_quantiles() -> None:
    samples = Samples([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert samples.median == 3.5
    assert samples.quantile(0.2) == 2.0
    assert samples.quantile(0.8) == 5.0
