"""Pages and services with which humans decide, each decision signed with a passkey.

Start with `services/` (what a decision does) and `passkeys` (the only module that uses the WebAuthn
library). `sentences` puts what is granted into words for pages, `consent_texts` and
`resume_consent_texts` make the texts that the human signs of them; `catalogue_words` adds what a
service calls its actions. `models` has passkeys, setup codes, recoveries, challenges and receipts;
`sessions` keeps who is signed in. `notifications/` tells people what waits for them.

`views/` are the pages and `urls` their addresses, `context_processors` is what every page shows,
and `receipts_api` serves receipts. `admin_site` is the control room of administrators, with its
lists, forms and detail pages in `admin` and `admin_*`. Translations are in `locale/`.
docs/protocol.md sections 6 (what is signed) and 11 (the pages) are the contract.
"""
