"""Browsers and chat rooms as channels of notifications."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0012_notifications"),
    ]

    beside_older_code = "Release 4 does not know this table: it came with 0012, in release 5."

    operations = [
        migrations.RemoveConstraint(
            model_name="notificationchannel",
            name="channel_kind",
        ),
        migrations.AddField(
            model_name="notificationchannel",
            name="last_sent_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="notificationchannel",
            name="name",
            field=models.CharField(blank=True, max_length=80),
        ),
        migrations.AlterField(
            model_name="notificationchannel",
            name="kind",
            field=models.CharField(
                choices=[
                    ("email", "Email"),
                    ("webhook", "Webhook"),
                    ("slack", "Slack"),
                    ("teams", "Teams"),
                    ("push", "Push"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="notificationchannel",
            name="target",
            field=models.CharField(blank=True, max_length=1024),
        ),
        migrations.AddConstraint(
            model_name="notificationchannel",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "email"), ("secret", ""), ("target", "")),
                    models.Q(
                        ("kind__in", ["webhook", "slack", "teams", "push"]),
                        models.Q(("target", ""), _negated=True),
                        models.Q(("secret", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="channel_kind",
            ),
        ),
    ]
