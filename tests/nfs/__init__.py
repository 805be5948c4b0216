"""Tests on a real NFS, see nfs.sh."""
