"""What users have, as rows: files of every kind, data sets and models of the Hub, labels, rows held out."""
