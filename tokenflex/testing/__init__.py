"""Conformance checks for parts and hosts, and tiny random hosts to run them on."""
