"""Takes the README's picture of an approval page on a phone: `python -m tests.browser.picture`.

The page is that of the request of `make demo`. Make the file smaller afterwards, with ImageMagick:
`convert docs/images/approval.png -strip -dither None -colors 200 PNG8:docs/images/approval.png`.
"""

import os
import shutil
import tempfile
from pathlib import Path

import django
from playwright.sync_api import sync_playwright

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup()

from tests.browser import steps  # noqa: E402 — these need the settings
from tests.browser.conftest import FLAGS, add_authenticator  # noqa: E402
from tests.browser.terminal import Terminal, approve_words  # noqa: E402
from tests.live import ROOT, LiveRegistry  # noqa: E402

PICTURE = ROOT / "docs/images/approval.png"
# Both permissions and both buttons of a common phone.
WIDTH, HEIGHT = 390, 844


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        registry = LiveRegistry(Path(directory), workers=1)
        registry.prepare()
        registry.start()
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2, locale="en-GB"
        )
        add_authenticator(page)
        steps.become_admin(page, registry)
        terminal = Terminal(registry)
        try:
            approve_words(page, terminal)
            link = terminal.wait_for(r"Approve here: (\S+)")
            steps.claim(page, link, terminal.wait_for(r"Claim code: (\S+)"))
            page.goto(page.url.partition("?")[0])
            page.screenshot(path=PICTURE)
        finally:
            terminal.close()
            browser.close()
            registry.stop()


if __name__ == "__main__":
    main()
