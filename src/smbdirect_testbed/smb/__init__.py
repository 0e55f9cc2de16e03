"""SMB servers and clients on hosts, and how a transport is spelt for each."""
