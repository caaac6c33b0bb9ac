"""Trains the miniature that `woodshed demo` teaches: a small ACE-Step world whose songs come from the composer.

`python -m miniature` on a machine with a GPU makes everything anew; see docs/miniature.md.
"""
