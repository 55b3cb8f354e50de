"""Two audits compared: rows, steps, splits; for a terminal or as JSON."""
