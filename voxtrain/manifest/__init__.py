"""Rows of text and audio before any tensor: read a manifest, judge each row, split by group, and say what went where.

Imports no torch: the whole room runs in seconds on a laptop, before anything heavy is loaded.
"""
