"""Services behind the pages, one module per subject. They call the registry and the verifier."""
