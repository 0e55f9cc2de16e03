"""Carriers: what gives us a running kernel."""
