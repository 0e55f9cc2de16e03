"""``python -m smbdirect_testbed``."""

from smbdirect_testbed.cli.main import main

main()
