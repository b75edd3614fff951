"""The registry's API, one view per act, in one module per subject. Views parse, call one service, render."""
