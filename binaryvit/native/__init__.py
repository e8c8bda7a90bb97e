"""What PyTorch computes on a CPU in many passes over memory, in C++: compiled at first use, never required."""
