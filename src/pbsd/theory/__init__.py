"""The mathematics of PBSD on finite spaces, exact: the oracle of `losses/`, and when a self-teacher is preferable.

numpy and scipy only. Distributions over a finite set of completions are arrays [Y] of probabilities.
"""
