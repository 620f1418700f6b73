"""What requests may cost a server."""

from dataclasses import dataclass, fields

from tokenflex.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What requests may cost; beyond it they are refused, not cut.

    Requests hold at most about ``requests`` x (``body`` + 3 x ``pixels``) bytes of memory, besides the model's own.

    Attributes:
        requests: that are read, wait or are answered at a time; others get 429.
        batch: requests that are answered together.
        wait: seconds to wait for further requests before a batch that isn't full.
        images: per request.
        characters: of a request's texts together.
        body: bytes of a request.
        image_bytes: of one image file.
        pixels: of all images of a request together.
        new_tokens: the longest answer that may be asked for.
        default_new_tokens: the longest answer where a request doesn't say.
        conversation: visual tokens that all images of a request share where it asks for nothing itself
            (`tokenflex.Fade`); None: each image for itself.
        seconds: for reading a request's body, and again for fetching its images.
        hosts: ``name`` or ``name:port`` of servers that images may be fetched from; none by default.

    Raises:
        ConfigError: a number isn't above 0 (``wait`` may be 0).
    """

    requests: int = 32
    batch: int = 8
    wait: float = 0.005
    images: int = 8
    characters: int = 1_000_000
    body: int = 24 * MIB
    image_bytes: int = 16 * MIB
    pixels: int = 48_000_000
    new_tokens: int = 1024
    default_new_tokens: int = 256
    conversation: int | None = None
    seconds: float = 10.0
    hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name != "hosts"):
            value = getattr(self, name)
            besides = {"wait": (0,), "conversation": (None,)}.get(name, ())
            if value not in besides and not (value is not None and value > 0):
                raise ConfigError(f"{name}={value} lets no request through; use a number above 0.")
        object.__setattr__(self, "default_new_tokens", min(self.default_new_tokens, self.new_tokens))
        object.__setattr__(self, "hosts", frozenset(host.lower() for host in self.hosts))
