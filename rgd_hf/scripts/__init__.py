"""What a training script needs around the Trainer: command line, runs, results, data files, metrics."""
