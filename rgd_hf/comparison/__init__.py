"""ERM against a rule on a user's own Trainer: what is compared, which way is better, how sure it is."""
