"""What people do on the pages, one module per subject. Views call these; these call the registry and the verifier."""
