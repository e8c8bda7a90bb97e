"""The steps of a binary unit made fast: the PyTorch reference, the same in C++, and its compilation. No modules."""
