"""What detectors are trained with: the originals' criteria, their denoising queries, recipes, data and `Trainer`."""
