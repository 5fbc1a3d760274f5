"""What the library adds to a batch and takes out again before the model sees it, and which of its samples count once."""
