"""What a server counts, in the form Prometheus reads."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tokenflex.serving.server.protocol import Usage

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one server, which share nothing with those of others in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        one: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("tokenflex_requests", "Requests for answers, by status of HTTP.", ["status"], **one)
        self._seconds = Histogram(
            "tokenflex_request_seconds", "From a request's first byte to its answer's last.", buckets=SECONDS, **one
        )
        self._open = Gauge("tokenflex_requests_open", "Requests that are read, wait or are answered.", **one)
        self._rows = Histogram("tokenflex_batch_requests", "Requests answered in one batch.", buckets=ROWS, **one)
        self._tokens = Counter(
            "tokenflex_tokens",
            "Tokens of answered requests: prompt (after images were shortened), completion, visual (of the prompt), "
            "visual_full (what the images would have taken at the finest level).",
            ["kind"],
            **one,
        )
        self._images = Counter("tokenflex_images", "Images of answered requests, by level.", ["level"], **one)

    def opened(self) -> None:
        """Count a request that has come."""
        self._open.inc()

    def closed(self, status: int, seconds: float) -> None:
        """It has been answered or refused."""
        self._open.dec()
        self.refused(status)
        self._seconds.observe(seconds)

    def refused(self, status: int) -> None:
        """A request was turned away, or answered, with this status."""
        self._requests.labels(str(status)).inc()

    def batch(self, rows: int) -> None:
        """Count a batch of so many rows that begins."""
        self._rows.observe(rows)

    def answered(self, usage: Usage) -> None:
        """Count an answer that is complete, and its tokens."""
        counts = usage.written()
        for kind in ("prompt", "completion", "visual"):
            self._tokens.labels(kind).inc(counts[f"{kind}_tokens"])
        self._tokens.labels("visual_full").inc(usage.visual_full)
        for level in usage.levels:
            self._images.labels(str(level)).inc()

    def written(self) -> bytes:
        """All counters as text, for Prometheus."""
        return generate_latest(self.registry)
