"""Measurements of speed: of training, of loading its images, and of inference."""
