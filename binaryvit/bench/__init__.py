"""Measurements of speed: of training, and of loading its images."""
