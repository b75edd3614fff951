"""The description of the API in OpenAPI 3.1: schemas, operations, examples, and the page that shows them."""
