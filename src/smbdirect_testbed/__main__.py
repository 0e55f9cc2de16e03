"""``python -m smbdirect_testbed``."""

from smbdirect_testbed.cli.main import main

if __name__ == "__main__":
    main()
