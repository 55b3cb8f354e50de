"""Measurements, side by side with what there was before; each prints the machine and its figures."""
