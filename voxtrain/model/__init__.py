"""Everything that touches VoxCPM: its folder and weights, its size, what learns in it, its loss, one optimizer step."""
