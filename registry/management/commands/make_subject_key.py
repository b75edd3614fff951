"""`make_subject_key`: a new version of the subject key, in a file for SUBJECT_KEY_FILE."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidRequestError
from audit.management.base_commands import JsonCommand

KEY_BYTES = 32


class Command(JsonCommand):
    help = (
        "Write a new subject key to FILE, which must not exist. Prints the versions only, never a "
        "key."
    )
    checks_settings = checks_hold = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("file", help="the file to write, created with mode 0600")
        parser.add_argument(
            "--keep",
            action="store_true",
            help="write this process's versions first, so that the new key can be distributed "
            "before it is used",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        held: dict[str, bytes] = dict(settings.SUBJECT_KEYS) if options["keep"] else {}
        numbers = [int(name) for name in held if name.isdecimal()]
        lines = held | {str(max(numbers, default=0) + 1): secrets.token_bytes(KEY_BYTES)}
        text = "".join(f"{name}:{b64u_encode(key)}\n" for name, key in lines.items())
        try:
            descriptor = os.open(Path(options["file"]), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise InvalidRequestError(
                f"{options['file']} cannot be created: {error.strerror}. Name a new file in a "
                "writable folder."
            ) from error
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return {"file": options["file"], "versions": list(lines)}
