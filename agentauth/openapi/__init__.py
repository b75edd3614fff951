"""The API in OpenAPI 3.1: schemas, operations, examples, and the page that shows them.

Start with `document`, which builds the whole from the URLconf and `paths/` (one module per group of
addresses). `operations` has the types that describe an operation, and the refusals they share.
`shapes` are the schemas of the protocol's values, `answers` and `decisions` those of endpoints. The
values of examples come from `story`. `views` serves the document and `page` renders it for people.
To describe a new endpoint, add it to `paths/`; its address and callers come from the URLconf.
"""
