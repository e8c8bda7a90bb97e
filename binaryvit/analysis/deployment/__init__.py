"""A run as it is deployed: the bytes of its packed file, whether it computes what the model does, and how fast."""

from binaryvit.analysis.deployment.findings import bytes_finding, equality_finding, latency_finding
from binaryvit.analysis.deployment.measure import (
    Deployment,
    Equality,
    deploy,
    description,
    equality,
    file_bytes,
    latency,
)

__all__ = [
    "Deployment",
    "Equality",
    "bytes_finding",
    "deploy",
    "description",
    "equality",
    "equality_finding",
    "file_bytes",
    "latency",
    "latency_finding",
]
