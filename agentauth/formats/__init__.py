"""How lists of the control room write dates and times, where Django's own way differs from ours."""
