"""Domain generalization: environments, views, batches, algorithms and one training (`recipes/domainbed.py`)."""
