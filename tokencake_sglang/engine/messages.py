"""What travels between the main process and the scheduler ranks, over SGLang's own channel."""

from typing import Any

import msgspec
from sglang.srt.managers.io_struct import BaseReq

from tokencake_sglang.agents.events import AnyEvent


class LoggedEvent(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the event log: numbered and stamped once, by the main process.

    ``stamp_s`` is seconds on the main process's monotonic clock, the only clock there is.
    """

    sequence: int
    stamp_s: float
    event: AnyEvent


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LoggedEvent)


class TokencakeEvent(BaseReq):
    """An entry of the event log on its way to every rank."""

    payload: bytes

    @classmethod
    def of(cls, sequence: int, stamp_s: float, event: AnyEvent) -> "TokencakeEvent":
        return cls(payload=_encoder.encode(LoggedEvent(sequence, stamp_s, event)))

    def entry(self) -> LoggedEvent:
        return _decoder.decode(self.payload)


class TokencakeStatusReq(BaseReq):
    """Asks every data-parallel rank for its status."""


class TokencakeStatusReply(BaseReq):
    payload: bytes

    @classmethod
    def of(cls, status: dict[str, Any]) -> "TokencakeStatusReply":
        return cls(payload=msgspec.json.encode(status))

    def status(self) -> dict[str, Any]:
        return msgspec.json.decode(self.payload)


MESSAGE_TYPES = (TokencakeEvent, TokencakeStatusReq, TokencakeStatusReply)
