"""What is wrong with a request, as OpenAI's clients read it."""

from __future__ import annotations

from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSON

_KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
_OTHER = "invalid_request_error"


class RequestError(Exception):
    """A request that is not answered as it wishes.

    Args:
        status: of HTTP.
        message: what is wrong, and what would help.
        param: the key of the body that is wrong.
        code: a word for programs.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @classmethod
    def of(
        cls,
        error: UserError,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> RequestError:
        """What a user error says, without the files of this machine."""
        hint = "" if error.hint is None else f" ({error.hint})"
        return cls(status, f"{error.what}{hint}", param=param, code=code)

    def content(self) -> dict[str, JSON]:
        """The body of the answer."""
        return {
            "error": {
                "message": self.message,
                "type": _KINDS.get(self.status, _OTHER),
                "param": self.param,
                "code": self.code,
            }
        }
