"""``python3 agent.pyz [PORT]``."""

import sys

from smbdirect_testbed.agent.service import main

main(sys.argv[1:])
