"""Money in an evaluation: what a remote arm will send and cost, said before; where it stops; what each arm costs and which are worth it.

In: items, prices, scores. Out: an announcement, a purse that says no in time, and costs with the Pareto line.
Left out on purpose: discounts for cached prompts, which each provider counts otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.config import to_dict
from sapwood.errors import ConfigError
from sapwood.evaluate.costs import ArmCost, BreakEven, break_even, hosted_cost, own_cost
from sapwood.evaluate.experiment import ArmScore, over_samples
from sapwood.evaluate.free import FREE_ARMS
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.items import asked_text
from sapwood.evaluate.verdict import arm_result
from sapwood.records import Item
from sapwood.requirements import Prices

LETTERS_A_TOKEN = 3
"""For a guess of tokens before a server has counted them: rather too many tokens than too few."""


@dataclass
class Purse:
    """What may be spent on a remote arm, and what has been. Counts what a server has counted, and guesses high what is to come:
    only the first answers may cost more than that."""

    prices: Prices
    longest: int
    """Tokens that an answer may have."""
    limit: float | None
    rounds: int = 1
    """Times that a question is asked at most, where tools answer between; what these say is not known before."""
    spent: float = 0.0
    stopped: str = ""
    """Why the arm was stopped; empty where it was not."""
    dearest: float = 0.0
    """The most that one answer has cost: a server's own template may be longer than any guess."""

    def __post_init__(self) -> None:
        if self.limit is not None and (self.prices.hosted_in is None or self.prices.hosted_out is None):
            raise ConfigError(
                "max_cost needs prices of a million tokens each: give hosted_in and hosted_out (of a study, in the requirements)."
            )
        if self.limit is not None and self.limit <= 0:
            raise ConfigError(f"max_cost is {self.limit}; give an amount above 0, or leave it out.")

    def pay(self, scores: Sequence[ArmScore]) -> None:
        """Count answers that are there."""
        paid = [self._price(score.tokens_in, score.tokens_out) for score in scores]
        self.spent, self.dearest = self.spent + sum(paid), max([self.dearest, *paid])

    def affords(self, items: Sequence[Item]) -> bool:
        """Whether the next answers, each as long as allowed, stay within the limit."""
        if self.limit is None:
            return True
        worst = sum(max(self.dearest, self._price(*self.most(item))) for item in items)
        if self.spent + worst > self.limit:
            self.stopped = f"stopped at max_cost {self.limit:g}: {self.spent:.4g} was spent, and the next answers may cost {worst:.2g}"
        return not self.stopped

    def most(self, item: Item) -> tuple[int, int]:
        """Tokens that an answer to a question may read and write: each round reads all before it again."""
        return self.rounds * (tokens_in(item) + (self.rounds - 1) * self.longest // 2), self.rounds * self.longest

    def _price(self, read: int, written: int) -> float:
        return (read * (self.prices.hosted_in or 0.0) + written * (self.prices.hosted_out or 0.0)) / 1e6


def tokens_in(item: Item) -> int:
    """About how many tokens a question is, guessed high from its letters, tools included."""
    letters = len(asked_text(item)) + sum(len(str(tool)) for tool in item.conversation.tools)
    return letters // LETTERS_A_TOKEN + 8 * len(item.conversation.messages)


def announcement(url: str, model: str, items: Sequence[Item], samples: int, purse: Purse) -> list[str]:
    """What leaves the machine, where to, and at what price, in sentences, before anything does."""
    read, written = (samples * sum(sides) for sides in zip(*map(purse.most, items), strict=True)) if items else (0, 0)
    said = [
        f"To {url} (model {model}) goes each of {len(items):,} questions{f', {samples} times' if samples > 1 else ''}: its messages and "
        f"its tools, not its reference. About {read:,} tokens are sent, and at most {written:,} come back."
    ]
    if purse.prices.hosted_in is None or purse.prices.hosted_out is None:
        said.append("Its price is not known (hosted_in and hosted_out; of a study, `prices` in the requirements), so no cost is counted.")
    else:
        most = (read * purse.prices.hosted_in + written * purse.prices.hosted_out) / 1e6
        said.append(f"At the prices given that is at most {most:.3g}" + (f"; it stops at {purse.limit:g}." if purse.limit else "."))
    return said


def costs_of(scores: Sequence[ArmScore], prices: Prices) -> dict[str, ArmCost]:
    """What each arm costs a query, with its rate over items."""
    found = {}
    for arm in dict.fromkeys(score.arm for score in scores):
        answers = [score for score in scores if score.arm == arm]
        if arm != HOSTED:
            found[arm] = own_cost(arm, answers, prices)
            continue
        rate = arm_result(over_samples(answers))
        means = [sum(values) / len(answers) for values in ([one.tokens_in for one in answers], [one.tokens_out for one in answers])]
        found[arm] = hosted_cost(arm, rate.rate, rate.interval, means[0], means[1], prices)
    return found


def pareto(costs: Mapping[str, ArmCost]) -> tuple[str, ...]:
    """Arms that no other one beats in both rate and cost a query, cheapest first. Cost is seconds where no price is known for all."""
    known = {arm: price for arm, cost in costs.items() if cost.rate is not None and (price := _price_of(cost, costs)) is not None}

    def beaten(arm: str) -> bool:
        rate, price = costs[arm].rate or 0.0, known[arm]
        others = [(costs[other].rate or 0.0, known[other]) for other in known if other != arm]
        return any(r >= rate and p <= price and (r, p) != (rate, price) for r, p in others)

    return tuple(sorted((arm for arm in known if not beaten(arm)), key=lambda arm: known[arm]))


def _price_of(cost: ArmCost, costs: Mapping[str, ArmCost]) -> float | None:
    priced = all(one.a_thousand is not None for one in costs.values())
    return cost.a_thousand if priced else cost.seconds


def break_evens(candidate: str, costs: Mapping[str, ArmCost], training_seconds: float, prices: Prices) -> dict[str, BreakEven]:
    """For each other arm, how many queries it takes until the candidate has paid for itself; arms without a price are left out."""
    mine = costs.get(candidate)
    found = {arm: break_even(mine, cost, training_seconds, prices) for arm, cost in costs.items() if arm != candidate and mine is not None}
    return {arm: value for arm, value in found.items() if value is not None}


def cost_record(scores: Sequence[ArmScore], prices: Prices, candidate: str, training_seconds: float) -> dict[str, Any]:
    """The content of `costs.json`: what the answers of each arm that a model gave cost here, and what follows for use."""
    costs = costs_of([score for score in scores if score.arm not in FREE_ARMS], prices)
    arms = {}
    for arm, cost in costs.items():
        answers = sum(score.arm == arm for score in scores)
        paid = None if cost.a_thousand is None else cost.a_thousand * answers / 1000
        arms[arm] = cost.to_dict() | {"answers": answers, "dollars": paid}
    even = break_evens(candidate, costs, training_seconds, prices).get(HOSTED)
    priced = len(costs) > 1 and all(cost.a_thousand is not None for cost in costs.values())
    return {
        "prices": to_dict(prices),
        "costs": arms,
        "frontier": list(pareto(costs)) if priced else [],
        "break_even": None if even is None else even.to_dict(),
        "training_seconds": training_seconds,
    }
