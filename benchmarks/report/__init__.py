"""A report reads the lines of a study: tables, statistics, plots."""
