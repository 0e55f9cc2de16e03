"""``python -m smbdirect_testbed``."""

from smbdirect_testbed.cli import main

main()
