"""A model on a server as a reward: it says which criteria of a rubric an answer meets.

In: the server's address, the model's name there, and criteria. Out: a `Reward`. A judge that does not answer judges nothing: those answers
are counted as unjudged with its words, and a run that nothing judges any more ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.errors import ConfigError
from sapwood.evaluate.judges import Judge
from sapwood.evaluate.rewards import Reward, judged_by_model
from sapwood.recipes.screen import Screen
from sapwood.remote import Remote, RemoteSampler


@dataclass(frozen=True, kw_only=True)
class JudgeRewardConfig:
    """An LLM judge as a reward, with the name `judge`."""

    judge_url: str | None = None
    """Server of a judge, in OpenAI's protocol: it is the last reward, the share of `judge_criteria` that an answer meets."""
    judge_model: str | None = None
    """The judge's name there."""
    judge_key: str | None = None
    """The environment variable that holds the key. The key itself is written nowhere."""
    judge_criteria: tuple[str, ...] = ()
    """Questions about an answer that the judge answers with yes or no."""
    judge_weight: float = 1.0
    """Its weight beside the other rewards."""
    judge_structured: bool = True
    """Hold the judge's answers to a JSON schema; switch it off for a server that cannot."""

    def __post_init__(self) -> None:
        if self.judge_url is None:
            for name in ("judge_model", "judge_key", "judge_criteria", "judge_weight", "judge_structured"):
                if getattr(self, name) != getattr(JudgeRewardConfig, name):
                    raise ConfigError(f"{name} is given, and no judge that would read it. Name its server with --judge-url.")
        elif self.judge_model is None or not self.judge_criteria:
            raise ConfigError(
                "A judge takes its name on the server and what it asks of an answer: --judge-model NAME --judge-criteria 'Is it polite?'"
            )

    def reward(self, screen: Screen) -> Reward | None:
        """The judge, asked whether it answers; None where none is named. Raises `RemoteError` for a server that does not."""
        if self.judge_url is None or self.judge_model is None:
            return None
        sampler = RemoteSampler(Remote(url=self.judge_url, model=self.judge_model, key=self.judge_key))
        sampler.check()
        screen.say(f"Questions, answers and references go to {self.judge_model} at {self.judge_url}, which rewards them.")
        judge = Judge(sampler, self.judge_model, self.judge_criteria, structured=self.judge_structured)
        return judged_by_model(judge, weight=self.judge_weight)
