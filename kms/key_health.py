"""Checks each living key against its backend: same key, and able to sign. Changes nothing."""

from dataclasses import dataclass

from agentauth.protocol.keys import parse_jwk
from kms import backends
from kms.models import Key


@dataclass(frozen=True)
class Finding:
    """The result for one key: `problem` is one line for the operator, empty if there is none."""

    kid: str
    purpose: str
    problem: str


def inspect_keys() -> list[Finding]:
    """One finding per key that signs or will sign, and one without `kid` per purpose without a key.

    A backend's error is the finding's problem, and is not raised.
    """
    living = Key.objects.filter(state__in=[Key.State.NEXT, Key.State.ACTIVE]).order_by(
        "purpose", "active_from"
    )
    found = [Finding(key.kid, key.purpose, _problem(key)) for key in living]
    without = set(Key.Purpose.values) - {finding.purpose for finding in found}
    return found + [
        Finding("", purpose, "no key signs for this purpose, now or later")
        for purpose in sorted(without)
    ]


def _problem(key: Key) -> str:
    on_record = parse_jwk(key.public_jwk)
    try:
        public = backends.public_key(key.uri)
        if public.alg != key.algorithm:
            return (
                f"the key backend has a key for {public.alg} there, but {key.algorithm} is on "
                "record"
            )
        if public != on_record or public.thumbprint != key.kid:
            return f"the key backend has another key there: {public.thumbprint}"
        backends.prove(key.uri, on_record, purpose=key.purpose)
    except backends.BusyError as error:
        return f"the key backend does not answer: {error}"
    except backends.BackendError as error:
        return str(error)
    return ""
