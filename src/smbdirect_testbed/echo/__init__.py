"""The standalone suite: a server, its client, checks and measurements over SMB-Direct and TCP.

Everything here except ``cli`` needs Python's standard library alone: it also runs, packed into one
file, on machines that have nothing else. ``docs/echo.md`` describes the protocol.
"""
