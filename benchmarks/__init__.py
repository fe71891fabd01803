"""Seconds and bytes of each phase; imports uso_core, never imported by it."""
