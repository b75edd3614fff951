"""The API in OpenAPI 3.1: schemas, operations, examples, and the page that shows them.

Start with `document`, which builds the whole from the URLconf and `paths/` (one module per group of
addresses). `operation_types` has the types that describe an operation, and the refusals they share.
`value_schemas` are the schemas of the protocol's values, `endpoint_schemas`, `catalogue_schemas`
and `verify_schemas` those of endpoints. The values of examples come from `example_values`. `views`
serves the document and `page_context` renders it for people. To describe a new endpoint, add it to
`paths/`; its address and callers come from the URLconf.
"""
