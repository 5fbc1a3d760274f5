"""Image classification: data sources, augmentation, models, averaged weights, costs, pictures."""
