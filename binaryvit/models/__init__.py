"""The method: quantizers, layers, the one model class, the ladder, and what is counted or stored of a model.

No data, no training.
"""
