"""The same texts from every checkpoint, measured, and a page to hear them side by side."""
