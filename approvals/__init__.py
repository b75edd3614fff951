"""A person says yes or no, with a passkey."""
