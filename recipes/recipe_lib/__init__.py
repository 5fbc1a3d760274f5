"""What the recipes share: command line, runs, results, data files, metrics."""
