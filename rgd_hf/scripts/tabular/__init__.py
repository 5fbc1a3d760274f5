"""Tabular classification and regression: tables, networks, rivals, and their comparison."""
