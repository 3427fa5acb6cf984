"""Erasing a user from every store: the ledger, the online store, and the files of a workspace."""

from qiance.privacy.eraser import EraseOnline, Eraser, ErasureReport
from qiance.privacy.lock import WorkspaceBusyError, workspace_lock
from qiance.privacy.online import erase_packed_sqlite, online_eraser
from qiance.privacy.stores import Store, workspace_stores
from qiance.privacy.swap import Swap, recover

__all__ = [
    "EraseOnline",
    "Eraser",
    "ErasureReport",
    "Store",
    "Swap",
    "WorkspaceBusyError",
    "erase_packed_sqlite",
    "online_eraser",
    "recover",
    "workspace_lock",
    "workspace_stores",
]
