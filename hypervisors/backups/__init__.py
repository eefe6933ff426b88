"""Backups of snapshots in image stores.

manifest.py              what an object is: its size and digest, what it builds on; the commit point of a backup
chain.py                 a backup with everything that it builds on, found and checked before anything else happens
disk.py                  the disk that a chain holds, newest over oldest, readable at random
sending.py               Copy snapshot -> image store, full and incremental
restoring.py             Copy snapshot in an image store -> volume or template
removing.py              Delete: refused, or merged, while later ones build on it
overview.py              verify and tree
"""
