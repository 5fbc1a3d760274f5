"""What only studies of images need: long tails and wrong labels, as a script of the engine's contract."""
