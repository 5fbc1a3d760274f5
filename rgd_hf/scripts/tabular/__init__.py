"""Tabular classification and regression: tables, networks, baselines, and their comparison."""
