"""Reports of a kernel about itself (oops, BUG, WARNING, …), found in its log and told apart."""

from smbdirect_testbed.kernel.splats.parse import MARK, Splat, find_splats
from smbdirect_testbed.kernel.splats.table import TABLE, Row, SplatKind, Verdict

__all__ = ["MARK", "TABLE", "Row", "Splat", "SplatKind", "Verdict", "find_splats"]
