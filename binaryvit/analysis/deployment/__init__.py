"""A run as it is deployed: the bytes of its packed file, whether it computes what the model does, and how fast."""

from binaryvit.analysis.deployment.findings import bytes_finding, equality_finding, latency_finding
from binaryvit.analysis.deployment.measure import deploy, file_bytes, identical_logits, latency

__all__ = [
    "bytes_finding",
    "deploy",
    "equality_finding",
    "file_bytes",
    "identical_logits",
    "latency",
    "latency_finding",
]
