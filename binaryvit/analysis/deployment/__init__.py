"""A run as it is deployed: the bytes of its packed file, whether it computes what the model does, and how fast."""

from binaryvit.analysis.deployment.findings import bytes_finding, equality_finding, latency_finding
from binaryvit.analysis.deployment.measure import Equality, deploy, equality, file_bytes, latency

__all__ = [
    "Equality",
    "bytes_finding",
    "deploy",
    "equality",
    "equality_finding",
    "file_bytes",
    "latency",
    "latency_finding",
]
