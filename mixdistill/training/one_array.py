"""One array of a checkpoint, piece by piece. Orbax fetches all pieces of an array at once and then unpacks them, which
takes twice the room of the array; tensorstore, which both of them write with, can take one after the other."""

from pathlib import Path

import numpy as np
import tensorstore

ONE_AFTER_THE_OTHER = {"file_io_concurrency": {"limit": 1}, "data_copy_concurrency": {"limit": 1}}


def read_array(state: Path, path: tuple[str, ...]) -> np.ndarray:
    """The array at `path` of the tree that orbax saved in folder `state`."""
    files = {"driver": "file", "path": f"{state.absolute()}/"}
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": files, "path": f"{'.'.join(path)}/"}}
    context = tensorstore.Context(ONE_AFTER_THE_OTHER)
    return tensorstore.open(spec, context=context, open=True, read=True).result().read().result()
