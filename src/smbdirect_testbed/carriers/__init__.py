"""Carriers: they provide a running kernel."""
