"""Pure rules: no framework, no clock, no I/O. `now` is passed in."""
