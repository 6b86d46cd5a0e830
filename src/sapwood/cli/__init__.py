"""The command line: one small function a verb, each a thin caller of what Python users call."""
