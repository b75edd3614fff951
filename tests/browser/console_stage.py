"""Sets up rows of the control room that no page makes: a dead message, a process's certificate."""

from datetime import UTC, datetime


def broken(email: str) -> dict[str, str]:
    """A message to this person that failed too often, and a certificate of a token key."""
    from agentauth.protocol.keys import PrivateKey
    from approvals.models import Notification, NotificationChannel
    from approvals.notifications.outbox import tell_channels
    from approvals.tests.notifying import by_mail
    from kms.process_key_certificates import certify
    from registry.models import Human

    now, human = datetime.now(UTC), Human.objects.get(email=email)
    by_mail(human, now)
    channel = NotificationChannel.objects.filter(human=human).latest("created_at")
    tell_channels([channel], what=Notification.What.PASSKEY_ADDED, now=now)
    Notification.objects.filter(channel=channel).update(state="dead", ended_at=now)
    certify(PrivateKey.generate().public, process=1, now=now)
    return {}


ACTS = {"broken": broken}
