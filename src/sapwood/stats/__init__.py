"""Intervals and tests that hold at the sizes people really have: 20 to a few hundred items.

In: plain sequences of numbers (scores, cluster names, sums and counts). Out: frozen records with the method's name
in them, so that a report never shows a number without saying how it was made.
Left out on purpose: anything asymptotic without a small-sample correction. How each holds is counted and simulated in
docs/statistics.md. Only `scipy.special` is imported, which loads in a fraction of the time of `scipy.stats`.
"""

from sapwood.stats.agreement import Agreement, agreement_of, krippendorff_alpha
from sapwood.stats.bootstrap import cluster_bootstrap
from sapwood.stats.choices import Strengths, strengths_of
from sapwood.stats.corrected import Corrected, corrected_mean
from sapwood.stats.families import benjamini_hochberg, holm
from sapwood.stats.length_control import LengthControlled, length_controlled
from sapwood.stats.paired import Difference, items_needed, minimum_detectable, paired_difference
from sapwood.stats.planning import items_for, more_items, not_worse
from sapwood.stats.rates import Interval, clopper_pearson, clustered_mean, mean_interval, rate_interval, ratio_interval, wilson
from sapwood.stats.sequential import Effect, detectable, effect_at, effect_over_time, evidence, units_for, units_of, variance_of
from sapwood.stats.split import split_evidence
from sapwood.stats.variance import VarianceSplit, variance_split

__all__ = [
    "Agreement",
    "Corrected",
    "Difference",
    "Effect",
    "Interval",
    "LengthControlled",
    "Strengths",
    "VarianceSplit",
    "agreement_of",
    "benjamini_hochberg",
    "clopper_pearson",
    "cluster_bootstrap",
    "clustered_mean",
    "corrected_mean",
    "detectable",
    "effect_at",
    "effect_over_time",
    "evidence",
    "holm",
    "items_for",
    "items_needed",
    "krippendorff_alpha",
    "length_controlled",
    "mean_interval",
    "minimum_detectable",
    "more_items",
    "not_worse",
    "paired_difference",
    "rate_interval",
    "ratio_interval",
    "split_evidence",
    "strengths_of",
    "units_for",
    "units_of",
    "variance_of",
    "variance_split",
    "wilson",
]
