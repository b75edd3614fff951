"""The API in OpenAPI 3.1: schemas, operations, examples, and the page that shows them."""
