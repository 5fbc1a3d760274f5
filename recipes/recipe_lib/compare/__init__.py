"""Comparing methods over data sets and seeds: the study, its runs, and what they say."""
