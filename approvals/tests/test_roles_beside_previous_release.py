"""While release 4 runs beside: it knows owners alone, and no other role gives anything there."""

import hashlib
from datetime import datetime
from pathlib import Path

import pytest

from agentauth.protocol.encoding import b64u_decode
from approvals.services.human_suspension_and_erasure import change_role
from approvals.services.setup_and_sign_in import create_setup_link
from registry.models import Human
from registry.roles import Role
from registry.services.humans import create_human
from registry.tests.cast import TESTER
from verifier.tests.test_beside_previous_release import earlier, run_there

pytestmark = [pytest.mark.postgres, pytest.mark.history, pytest.mark.django_db(transaction=True)]
__all__ = ["earlier"]

# Prints who is an administrator for the previous release, which rows it reports, and whether it
# opens these links.
ASKS = """
import json, sys
import django
django.setup()
from django.utils import timezone
from agentauth.protocol.errors import NotFoundError
from kms.row_sealing import unsealed_rows
from registry.models import Human
from approvals.services.setup_and_sign_in import find_setup_code
told = json.load(sys.stdin)
opens = []
for each in told:
    try:
        find_setup_code(bytes.fromhex(each), now=timezone.now())
        opens.append(True)
    except NotFoundError:
        opens.append(False)
print(json.dumps([
    {row.email: [row.is_administrator, row.has_perm("x")] for row in Human.objects.all()},
    [table for table, _ in unsealed_rows()],
    opens,
]))
"""


def test_release_4_takes_owners_alone_for_administrators(earlier: Path, now: datetime) -> None:
    for role in Role:
        create_human(email=f"{role}@x.example", name=str(role), role=role, actor=TESTER, now=now)
    for name, first, then in (
        ("lowered", Role.OWNER, Role.AUDITOR),
        ("raised", Role.AUDITOR, Role.OWNER),
        ("taken", Role.OWNER, None),
    ):
        human = create_human(
            email=f"{name}@x.example", name=name, role=first, actor=TESTER, now=now
        )
        change_role(human=human, role=then, actor=TESTER, now=now)
    links = [
        create_setup_link(email=f"{role}@new.example", role=role, actor=TESTER, now=now).url
        for role in (None, *Role)
    ]
    codes = [b64u_decode(each.rstrip("/").rpartition("/")[2]) for each in links]
    found, reported, opened = run_there(
        earlier, ASKS, [hashlib.sha256(code).hexdigest() for code in codes]
    )
    theirs = {email for email, says in found.items() if any(says)}
    assert theirs == {"owner@x.example", "raised@x.example"}
    assert theirs == {row.email for row in Human.objects.all() if row.role is Role.OWNER}
    # It opens invitations without a role and of owners, and reports the other three.
    assert opened == [True, True, False, False, False]
    assert reported == ["approvals_setupcode"] * 3
