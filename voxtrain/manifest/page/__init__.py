"""The audit page, data/audit.html: what became of a manifest, for people who would rather look than read."""
