"""Continuous-integration test environment for SMB-Direct on Linux."""

from importlib.metadata import version

__version__ = version("smbdirect-testbed")
