"""A released model at work: in Python, on the command line and over HTTP."""
