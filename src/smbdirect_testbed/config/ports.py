"""Where SMB servers listen."""

from __future__ import annotations

from smbdirect_testbed.config.spec import Transport

PORTS = {Transport.TCP: 445, Transport.NBT: 139, Transport.SMBDIRECT: 5445}
"""TCP ports by transport; 5445 is SMB-Direct's own port (MS-SMBD 2.1)."""
