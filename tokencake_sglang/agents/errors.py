"""Typed refusals: what was wrong, what was given, what would work."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a tag or a signal was refused; the value is what clients see."""

    INVALID_TAG = "invalid_tag"
    INVALID_MESSAGE = "invalid_message"
    MESSAGE_TOO_LONG = "message_too_long"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_AGENT = "unknown_agent"
    UNKNOWN_APPLICATION = "unknown_application"
    UNKNOWN_CALL = "unknown_call"
    CONTRADICTION = "contradiction"
    AGENT_FINISHED = "agent_finished"
    UNAVAILABLE = "unavailable"


HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_TAG: 400,
    ErrorCode.INVALID_MESSAGE: 400,
    ErrorCode.MESSAGE_TOO_LONG: 413,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.UNKNOWN_AGENT: 404,
    ErrorCode.UNKNOWN_APPLICATION: 404,
    ErrorCode.UNKNOWN_CALL: 404,
    ErrorCode.CONTRADICTION: 409,
    ErrorCode.AGENT_FINISHED: 409,
    ErrorCode.UNAVAILABLE: 503,
}


class AgentError(ValueError):
    """A refused tag or signal. Nothing was changed by what it refuses.

    What ``message`` quotes of it may be no text that can be sent: lone surrogates are escaped.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]
