"""The steps of a binary unit made fast, in PyTorch and in C++, and batch norm over several processes."""
