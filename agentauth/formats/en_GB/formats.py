"""24 hours, as on all other pages: Django would write "2:37 p.m."."""

TIME_FORMAT = "H:i"
DATETIME_FORMAT = "j M Y, H:i"
