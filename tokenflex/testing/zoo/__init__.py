"""Tiny random hosts, one per architecture."""
