"""Pages and services with which humans decide, each decision signed with a passkey."""
