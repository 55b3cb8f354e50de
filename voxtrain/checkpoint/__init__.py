"""Checkpoints: what is written when, exact resume, retention by evidence, export for upstream's tools."""
