"""What only studies of domains need: one held-out domain as a script of the engine's contract."""
