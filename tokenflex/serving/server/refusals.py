"""Errors as OpenAI's clients read them."""

import logging
from typing import Any

from tokenflex.errors import ConfigError, DataError, InputError

logger = logging.getLogger("tokenflex.serving")

KINDS = {429: "rate_limit_error", 500: "server_error", 502: "server_error", 503: "server_error", 504: "server_error"}


class RefusedError(Exception):
    """A request that gets an error in place of an answer.

    Args:
        message: what is wrong, what was expected, and how to mend it.
        code: a word for programs.
        status: of HTTP.
        param: the option that is wrong.
    """

    def __init__(self, message: str, code: str = "invalid_value", status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.status, self.param = message, code, status, param

    @property
    def body(self) -> dict[str, Any]:
        """The refusal as it is sent, JSON-ready."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BaseException) -> RefusedError:
    """What is told of an error; of one that nobody foresaw only its kind, and the rest is logged."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, InputError | ConfigError | DataError):
        return RefusedError(str(error))
    logger.error("a request failed", exc_info=error)
    return RefusedError(
        f"The model failed on this request ({type(error).__name__}); the server's log has the details. Other requests "
        "are answered as before.",
        "model_failed",
        500,
    )
