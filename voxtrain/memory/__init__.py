"""Memory: how a run fits its card (stack), what it will need (plan), what it needed (watch), why it broke (autopsy)."""
