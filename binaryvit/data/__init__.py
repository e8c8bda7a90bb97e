"""From a data set's name to batches of tensors: sources, images, transforms, order. No models."""
