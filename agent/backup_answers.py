"""What verbs say of backups, in the words of answers."""

from __future__ import annotations

from agent.backup_models import BackupChecked, BackupNode, BackupTree, BackupVerified
from hypervisors.operations import Node, Tree, Verified


def verified(found: Verified) -> BackupVerified:
    chain = [BackupChecked(ref=each.ref, size=each.size, fault=each.fault) for each in found.chain]
    return BackupVerified(ref=found.ref, sound=found.sound, chain=chain, fault=found.fault)


def tree(found: Tree) -> BackupTree:
    return BackupTree(roots=[_node(root) for root in found.roots], strays=list(found.strays))


def _node(found: Node) -> BackupNode:
    return BackupNode(
        ref=found.ref,
        volume=found.volume,
        snapshot=found.snapshot,
        created=found.created,
        virtualSize=found.virtual_size,
        size=found.size,
        changed=found.changed,
        fault=found.fault,
        children=[_node(child) for child in found.children],
    )
