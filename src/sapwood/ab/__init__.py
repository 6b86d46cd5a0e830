"""A/B tests in use: a plan, arms that stick to units, outcomes, and what may be concluded at any time.

In: a plan (YAML), units as they come, outcomes as they settle. Out: who gets which arm, and an analysis that is a pure function of the
plan and the records. `serve` puts it in front of models; the verb `ab` reads its records. Nothing here imports torch.
"""
