"""Where training and evaluation meet: whole chains that a person starts with one command.

`tune` is the chain (rows → ledger → base arms → training → tuned arm → verdict → report); `quickstart` is that chain on a
task of ours; `assess` measures a model or a finished run; `screen` is what a person sees meanwhile.
"""

from sapwood.recipes.assess import AssessConfig, AssessResult, assess
from sapwood.recipes.chain import TuneResult
from sapwood.recipes.quickstart import QUICKSTART, quickstart
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig, tune

__all__ = ["QUICKSTART", "AssessConfig", "AssessResult", "Screen", "TuneConfig", "TuneResult", "assess", "quickstart", "tune"]
