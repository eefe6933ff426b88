"""NFS exports that the agent mounts itself, for as long as somebody needs them."""
