"""Client of a registry's public audit log. Trusts only what the given keys signed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from agentauth.protocol.checkpoint import OpenedCheckpoint, open_checkpoint
from agentauth.protocol.checkpoint_proofs import parse_log_proof, verify_log_proof
from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import (
    AgentAuthError,
    ChainError,
    EncodingError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.log_hashes import entry_hash, field_commitment, leaf_hash
from agentauth.protocol.signed_notes import SignatureType, parse_vkey

from .bounded_http import ask
from .registry_http import (
    ATTEMPTS,
    LONGEST_WAIT_SECONDS,
    TIMEOUT_SECONDS,
    heals,
    open_client,
    pause,
    refusal,
    registry_at,
    retry_after,
)
from .url_checks import check_registry_url

# Members beside the event that are not part of it (docs/protocol.md section 9).
_BESIDE: Final = ("salt", "leaf_index", "openings")


@dataclass(frozen=True, slots=True)
class ProvenEvent:
    """The event has number `index` in the tree that `opened` signs.

    Keep `text`: with the event and the keys it is an offline proof.
    """

    index: int
    opened: OpenedCheckpoint
    text: str


class LogClient:
    """One registry's log. Needs no agent and no credentials: the log is public.

    `vkeys` are the verifier keys of the log and of trusted witnesses, obtained from elsewhere than
    the registry. All keys of the log have its name. Raises NoteError for an invalid key, ValueError
    unless there are keys of exactly one log.
    """

    def __init__(
        self,
        registry_url: str,
        vkeys: Iterable[str],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.registry_url = check_registry_url(registry_url)
        keys = [parse_vkey(text) for text in vkeys]
        self._logs = [key for key in keys if key.kind is SignatureType.NOTE]
        self._witnesses = [key for key in keys if key.kind is SignatureType.COSIGNATURE]
        if len({key.name for key in self._logs}) != 1:
            raise ValueError("The keys must be those of one log.")
        self._origin = self._logs[0].name
        self._transport = transport

    async def checkpoint(self) -> OpenedCheckpoint:
        """The newest checkpoint, with the cosignatures of the given witnesses; the caller decides
        how many are enough.

        Raises UntrustedNoteError if no pinned key signed it, NotYetLoggedError if there is none
        yet.
        """
        return open_checkpoint(
            await self._get("/v1/audit/checkpoint"),
            log_keys=self._logs,
            witnesses=self._witnesses,
            expected_origin=self._origin,
        )

    async def prove(self, event: Mapping[str, object]) -> ProvenEvent:
        """Prove that the log contains this event, as the events API returns it: with `salt`,
        `leaf_index` and `openings`.

        Raises ChainError if the event differs from the log's or opens what it did not commit to,
        UntrustedNoteError if no pinned key signed the tree, NotYetLoggedError with `retry_after` if
        it is too early.
        """
        leaf = _leaf(event)
        given = await self._get("/v1/audit/proof/bundle", event=str(event.get("id")))
        opened = verify_log_proof(
            given,
            leaf=leaf,
            log_keys=self._logs,
            witnesses=self._witnesses,
            expected_origin=self._origin,
        )
        index = parse_log_proof(given).index
        told = event.get("leaf_index")
        if told is not None and (type(told) is not int or told != index):
            raise ChainError("The event has another number in the log.")
        return ProvenEvent(index, opened, given.decode())

    async def _get(self, path: str, **query: str) -> bytes:
        """Get `path`, retrying where that may help. Raises AgentAuthError."""
        url = self.registry_url + path
        error: AgentAuthError = TemporarilyUnavailableError()
        for attempt in range(ATTEMPTS):
            asked: int | None = None
            try:
                async with open_client(url, self._transport) as client:
                    response = await ask(
                        client,
                        "GET",
                        url,
                        who=registry_at(self.registry_url),
                        seconds=TIMEOUT_SECONDS,
                        params=query,
                    )
            except TemporarilyUnavailableError as lost:
                error = lost
            else:
                if response.is_success:
                    return response.content
                error, asked = refusal(response), retry_after(response.headers)
                if not heals(response.status_code, error) or (asked or 0) > LONGEST_WAIT_SECONDS:
                    raise error
            if attempt < ATTEMPTS - 1:
                await pause(attempt, asked)
        raise error


def _leaf(event: Mapping[str, object]) -> bytes:
    """The leaf hash, after comparing all openings with their commitments. Raises ChainError."""
    bare = {name: value for name, value in event.items() if name not in _BESIDE}
    openings, data = event.get("openings") or {}, event.get("data")
    if not isinstance(openings, Mapping) or not isinstance(data, Mapping):
        raise ChainError("This is not an event.")
    try:
        for member, opening in openings.items():
            said = {"commitment": field_commitment(opening["value"], _salt(opening["salt"]))}
            # Further members beside salt and value would be unproved.
            if data.get(member) != said or opening.keys() != {"salt", "value"}:
                raise ChainError("The event discloses a value that it did not commit to.")
        return leaf_hash(entry_hash(bare, _salt(event.get("salt"))))
    except (EncodingError, KeyError, TypeError):
        raise ChainError("Not an event with its salt.") from None


def _salt(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError(text)
    return b64u_decode(text)
