"""``python3 agent.pyz [PORT]``."""

import sys

from smbdirect_testbed.agent.service import main

if __name__ == "__main__":
    main(sys.argv[1:])
