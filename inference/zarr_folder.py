"""Zarr folders that stay the ones that were opened, as long as data are read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

from pyro_tvae.files import state_of

from .netcdf import check_same

__all__ = ["SameFolder"]


class SameFolder(LocalStore):
    """Zarr's, which raises ValueError where the folder was written anew or removed since.

    Zarr's own reads chunks of whatever lies there by then, and of what lies there no more as missing values.

    Args:
        root: of the folder.
        read_only: nothing is written through it.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.written = state_of(self._mark)

    @property
    def _mark(self) -> Path:
        return Path(self.root) / ".zgroup"  # which no later writing of variables touches

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        check_same(Path(self.root), self._mark, self.written)
        return await super().get(*args, **kwargs)
