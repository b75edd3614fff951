"""What happened: append-only, provable. Knows no other app."""
