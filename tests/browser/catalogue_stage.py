"""A service with words of its own: what agents ask for there, and a version that waits."""

import io
from typing import Any

from PIL import Image, ImageDraw

PRINT = "custom:com.acme.print:printers"
WORDS: dict[str, Any] = {
    "actions": {
        "read:files": {
            "label": "Look at documents",
            "sentence": "Opens documents in {resource} to count their pages.",
            "icon": "document",
            "arguments": {"size": {"label": "File size", "format": "bytes"}},
        },
        "transact:payments": {
            "label": "Pay for prints",
            "sentence": "Pays for your prints, {amount}, from {resource}.",
            "icon": "money",
        },
        PRINT: {
            "label": "Print a document",
            "sentence": "Prints on {resource}, in colour if the document has colours.",
            "icon": "printer",
            "risk": "high",
        },
    },
    "resources": {
        "payments": {"label": "your print account"},
        "printers/second-floor": {"label": "the printer on the second floor"},
    },
}
CHANGED: dict[str, Any] = {
    "actions": {
        **WORDS["actions"],
        "read:files": {
            "label": "Read documents",
            "sentence": "Opens documents in {resource}, as Harbour Files does.",
            "icon": "folder",
        },
        "delete:files": {"label": "Clear the queue", "sentence": "Deletes waiting prints."},
    },
    "resources": {"payments": {"label": "your print account"}},
}


def drawn_logo(colour: str) -> bytes:
    """Two sheets of paper on a disc."""
    picture, out = Image.new("RGBA", (256, 256), (0, 0, 0, 0)), io.BytesIO()
    draw = ImageDraw.Draw(picture)
    draw.ellipse((0, 0, 255, 255), fill=colour)
    draw.rectangle((92, 60, 182, 168), fill="#ffffff80")
    draw.rectangle((72, 84, 162, 192), fill="#ffffff")
    picture.save(out, format="PNG")
    return out.getvalue()


def set_up(email: str) -> dict[str, str]:
    from registry.services.catalogues import approve_catalogue, propose_catalogue
    from registry.services.logo_encoder_process import encode
    from registry.services.service_logos import approve_logo, propose_logo
    from tests.browser.stage import DAY, MANY, MINUTE, PAY, SPENDING, Stage

    stage = Stage(email)
    shop = stage.service_provider("Copy Corner", "https://print.copycorner.example")
    agent = stage.agent("Print Helper", "Prints what you mark.", DAY)
    first, second = (
        {"service_provider": shop, "document": words, "actor": stage.system, "now": stage.now}
        for words in (WORDS, CHANGED)
    )
    first_row, _is_new = propose_catalogue(**first)
    approve_catalogue(row=first_row, actor=stage.alice, now=stage.now)
    waiting, _is_new = propose_catalogue(**second)
    other = stage.service_provider("Print Works", "https://printworks.example")
    # The last one waits, and is a copy of the second.
    for owner, colour in ((shop, "#0b6e4f"), (other, "#7a1f5c"), (shop, "#7a1f5c")):
        image = encode(drawn_logo(colour))
        row = propose_logo(service_provider=owner, image=image, actor=stage.system, now=stage.now)
        if (owner, colour) != (shop, "#7a1f5c"):
            approve_logo(row=row, actor=stage.alice, now=stage.now)
    asked = stage.request(
        agent, shop, MINUTE, [MANY[1], MANY[6], PAY], envelope=SPENDING, reason="For the handouts."
    )
    paying = stage.approved(agent, shop, 3 * MINUTE, [PAY], envelope=SPENDING)
    return {
        "words": f"/approvals/{asked.pk}/",
        "words-confirmation": f"/confirmations/{stage.confirmation(paying, '80.00', MINUTE).pk}/",
        "catalogue": f"/catalogues/{waiting.pk}/",
        "logo": f"/logos/{shop.pk}/",
    }


ACTS = {"set_up_catalogue": set_up}
