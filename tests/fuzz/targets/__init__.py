"""The targets, one module a subject."""
