"""One kind of folder for all that runs leave: begun by one run, gone on with by others, read by anyone."""

from tokenflex.run_folder.folder import MANIFEST, Manifest, RunFolder, RunKind, Shard, ShardWriter, differences

__all__ = ["MANIFEST", "Manifest", "RunFolder", "RunKind", "Shard", "ShardWriter", "differences"]
