"""How sure a number is: intervals by cluster bootstrap, and which line is lowest where. NumPy alone."""
