"""Exact bytes: what production must read, make and refuse.

`test_vectors` and `test_passkey_vectors` run the shared security files, which are external data
(`shared` finds them); `test_kept` asks the same vectors with warm caches. `adapter` puts production
functions into the form the files need. `generate` writes our own vectors to `own/`, for authors of
other clients, and `test_own` reads them back. `example` writes docs/example.md, one story in exact
bytes, which `test_example` asks of the real code; `openapi` puts its values into the API
description. `test_passkey_pages` posts the W3C's ceremonies to the pages.
"""
