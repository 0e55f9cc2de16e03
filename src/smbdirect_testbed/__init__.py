"""Continuous-integration test environment for SMB-Direct on Linux."""
