"""The commands of an auditor: they check a file with keys that the caller trusts, offline."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk import verify_log, verify_log_proof
from agentauth.sdk.offline_receipt_check import check_receipt, read_file, read_key_set, summary

from .result import DONE, REFUSED, Outcome


async def check_approval(*, file: Path, trusted_keys: Path, issuer: str | None) -> Outcome:
    """Check an approval receipt. Raises InvalidReceiptError, InvalidRequestError."""
    keys = read_key_set(read_file(str(trusted_keys)))
    receipt = check_receipt(read_file(str(file)), keys=keys, issuer=issuer)
    return Outcome({"ok": True, **summary(receipt)})


async def check_log(
    *,
    folder: Path,
    trusted_keys: Path,
    old_checkpoint: Sequence[Path],
    accept_break: Sequence[str],
) -> Outcome:
    """Check a folder with the audit log. Raises InvalidRequestError for unusable arguments."""
    options = Namespace(
        folder=folder,
        trusted_keys=trusted_keys,
        old_checkpoint=list(old_checkpoint),
        accept_break=list(accept_break),
    )
    return _checked(verify_log.check, options)


async def check_proof(*, trusted_keys: Path, **files: Path | None) -> Outcome:
    """Check one proof from the audit log. Raises InvalidRequestError for unusable arguments."""
    return _checked(verify_log_proof.check, Namespace(trusted_keys=trusted_keys, **files))


def _checked(check: Callable[[Namespace], Mapping[str, object]], options: Namespace) -> Outcome:
    # The two checkers are also plain programs, so they take the arguments that argparse reads.
    try:
        answer = check(options)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(str(error)) from None
    return Outcome(answer, DONE if answer["ok"] else REFUSED)
