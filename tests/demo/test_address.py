"""Where the page can be served, found out before anything is loaded."""

import socket

import pytest

from tokenflex.demo.address import free_port
from tokenflex.errors import ConfigError


def test_a_free_port_is_found():
    assert 0 < free_port("127.0.0.1", 0) < 65536


def test_a_taken_port_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1, port {port}: Address already in use.*--port"):
            free_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "port 70000 isn't one"),
        ("127.0.0.1", -1, "port -1 isn't one"),
        ("192.0.2.1", 0, "nothing can be served on 192.0.2.1"),  # an address that no machine has
    ],
)
def test_other_places_that_can_t_be_served(host, port, message):
    with pytest.raises(ConfigError, match=message):
        free_port(host, port)
