"""From kept rows to train, validation and test: groups, the place of each, and the certificate that nothing leaks."""
