#!/usr/bin/env python
"""Django's command line, under the name that its reader types (`settings.COMMAND`)."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
    execute_from_command_line([settings.COMMAND, *sys.argv[1:]])
