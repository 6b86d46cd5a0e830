"""Items, scorers, arms, and the verdict: did tuning help, by how much, and how sure is that?

Held-out conversations and a `Sampler` in; `items.jsonl`, `scores.jsonl` and `verdict.json` of a run out. A model is
only ever a `Sampler` or a `LogProber` here. The report reads those files and lives in `sapwood.evaluate.report`.
"""

from sapwood.evaluate.bits import BitsChange, BitsPerToken, bits_change, bits_per_token
from sapwood.evaluate.experiment import ArmScore, over_samples, run_arm, run_free_arm, scores_from
from sapwood.evaluate.few_shot import FewShot, choose_shots, few_shot_prompt
from sapwood.evaluate.free import FREE_ARMS, MOST_COMMON, NEAREST, most_common_answer, nearest_row
from sapwood.evaluate.function_calls import calls_in, function_call
from sapwood.evaluate.guess import Guess, pick_scorer
from sapwood.evaluate.items import clusters_of, item_records, items_from
from sapwood.evaluate.scorers import Scorer, exact, guarded, number, regex, set_f1
from sapwood.evaluate.verdict import ArmResult, Verdict, arm_result, decide

__all__ = [
    "FREE_ARMS",
    "MOST_COMMON",
    "NEAREST",
    "ArmResult",
    "ArmScore",
    "BitsChange",
    "BitsPerToken",
    "FewShot",
    "Guess",
    "Scorer",
    "Verdict",
    "arm_result",
    "bits_change",
    "bits_per_token",
    "calls_in",
    "choose_shots",
    "clusters_of",
    "decide",
    "exact",
    "few_shot_prompt",
    "function_call",
    "guarded",
    "item_records",
    "items_from",
    "most_common_answer",
    "nearest_row",
    "number",
    "over_samples",
    "pick_scorer",
    "regex",
    "run_arm",
    "run_free_arm",
    "scores_from",
    "set_f1",
]
