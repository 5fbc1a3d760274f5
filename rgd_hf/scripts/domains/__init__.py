"""Domain generalization: environments, algorithms, sweeps, model selection, reports (`recipes/domainbed.py`)."""
