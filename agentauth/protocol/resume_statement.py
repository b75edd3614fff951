"""The statement with which an owner or administrator lifts their own suspension (section 6)."""

from dataclasses import dataclass
from typing import Literal

from .passkey_statements import Statement, parse_statement
from .statement_building import Signing, common_members


@dataclass(frozen=True, slots=True)
class Subject:
    """What is resumed: an agent, a grant (named like its agent), a person or a service provider.

    A person is named by id alone: the receipt must not keep their name after they are deleted.
    """

    type: Literal["agent", "grant", "human", "service_provider"]
    id: str
    name: str | None = None

    def to_json(self) -> dict[str, object]:
        """The wire form."""
        named: dict[str, object] = {} if self.name is None else {"name": self.name}
        return {"type": self.type, "id": self.id, **named}


def resume_statement(
    signing: Signing, *, subject: Subject, party: Literal["owner", "administrator"], suspension: int
) -> Statement:
    """The signer, as this party, lifts this one suspension of exactly this row.

    `suspension` is a number that rises with each suspension of the row, so an old signature cannot
    lift a later one. Raises InvalidRequestError naming the member.
    """
    return parse_statement(
        common_members(signing, "resume", "resume")
        | {"subject": subject.to_json(), "party": party, "suspension": suspension}
    )
