"""Where a page can be served."""

import socket

from tokenflex.errors import ConfigError


def free_port(host: str, port: int) -> int:
    """The port, where it can be listened to; for 0 one that is free.

    Raises:
        ConfigError: it is taken, not allowed, or the address isn't this machine's.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port {port} isn't one; use 1 to 65535, or 0 for a free one.")
    plain = host.strip("[]")  # of IPv6
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((plain, port))
            return probe.getsockname()[1]
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"nothing can be served on {host}, port {port}: {reason}. Give another --port (0 takes a free one), or "
            "--host 127.0.0.1."
        ) from error
