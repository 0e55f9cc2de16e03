"""The driver under test: kernel modules from a source, built against an image's kernel."""
