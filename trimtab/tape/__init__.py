"""Recordings: looked at, cut and joined, decided once more, compared under another policy."""
