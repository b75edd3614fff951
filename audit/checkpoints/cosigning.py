"""Ask the configured witnesses to cosign the log, and keep their signature lines."""

from datetime import datetime

from django.conf import settings

from agentauth.protocol.errors import InvalidRequestError, TemporarilyUnavailableError
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.checkpoints.signing import newest_signed
from audit.checkpoints.witness_client import Outcome, Result, Witness, cosign, parse_witness
from audit.log.tree_reader import consistency_proof
from audit.models import Checkpoint, Cosignature


def witnesses() -> list[Witness]:
    """The witnesses in settings.AUDIT_WITNESSES, each `vkey url`.

    Raises InvalidRequestError, also if two have the same name: their lines are kept by name.
    """
    found: dict[str, Witness] = {}
    for text in settings.AUDIT_WITNESSES:
        witness = parse_witness(" ".join(text.split()))
        if (name := witness.verifier.name) in found:
            raise InvalidRequestError(f"Two witnesses are named {name}. Remove one of them.")
        found[name] = witness
    return list(found.values())


def cosign_log(*, now: datetime) -> int:
    """Ask every witness that has not cosigned the newest checkpoint; returns how many cosigned.

    Asks all of them, then raises ContradictedError if one saw another tree than ours, else
    TemporarilyUnavailableError if one returned no signature line. Raises ChainError at once if our
    own log lacks leaves that the checkpoint covers.
    """
    newest = newest_signed(now=now)
    if newest is None:
        return 0
    kept = set(newest.cosignatures.values_list("witness", flat=True))
    missing = [witness for witness in witnesses() if witness.verifier.name not in kept]
    outcomes = {witness.verifier.name: _ask(witness, newest, now) for witness in missing}
    for name, outcome in outcomes.items():
        if outcome.result is Result.CONTRADICTED or _is_beyond_us(outcome):
            raise ContradictedError(
                f"The witness {name} cosigned a different log than this one ({outcome.result}, "
                f"size {outcome.size}): this log was set back, or the witness was shown a fork."
            )
    failed = {name: each for name, each in outcomes.items() if each.result is not Result.COSIGNED}
    if failed:
        said = ", ".join(
            f"{name}: {each.result} {each.detail}".strip() for name, each in failed.items()
        )
        raise TemporarilyUnavailableError(f"Some witnesses did not cosign the log: {said}")
    return len(outcomes)


def _is_beyond_us(outcome: Outcome) -> bool:
    """Whether the witness cosigned a larger tree that no checkpoint of ours has.

    Another process may have signed a larger one since we read the newest.
    """
    if outcome.result is not Result.AHEAD or outcome.size is None:
        return False
    return not Checkpoint.objects.filter(size=outcome.size).exists()


def _ask(witness: Witness, newest: Checkpoint, now: datetime) -> Outcome:
    name = witness.verifier.name
    last = Cosignature.objects.filter(witness=name).order_by("-checkpoint").first()
    outcome = cosign(
        newest.note,
        witness=witness,
        # The id of a checkpoint is its size.
        old_size=last.checkpoint_id if last else 0,
        consistency=consistency_proof,
    )
    if outcome.line is not None:
        # Another process may have asked it at the same time.
        Cosignature.objects.get_or_create(
            checkpoint=newest, witness=name, defaults={"line": outcome.line, "at": now}
        )
    return outcome
