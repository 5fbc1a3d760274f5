"""Data and weights that come from package indexes, for machines without a hub."""
