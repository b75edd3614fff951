"""The statement by which an administrator releases grants suspended by a restore (section 6)."""

from collections.abc import Sequence

from .encoding import b64u_encode
from .passkey_statements import Statement, parse_statement
from .statement_building import Signing, common_members


def release_statement(
    signing: Signing, *, name: str, size: int, root: bytes, grants: Sequence[tuple[str, int]]
) -> Statement:
    """Exactly these grants (id, version) return after the restore that began the log `name`.

    `size` and `root` (32 bytes) are those of the last checkpoint of the lost log, which proves that
    the grants were not used. Raises InvalidRequestError naming the member.
    """
    return parse_statement(
        common_members(signing, "release", "release")
        | {
            "name": name,
            "size": size,
            "root": b64u_encode(root),
            "grants": [{"id": grant, "version": version} for grant, version in grants],
        }
    )
