"""How long things take: starting, the edit-test loop, many hosts, many environments."""
