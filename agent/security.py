"""Who is calling, and what that caller may do. Roles are an order: who may command may also operate and view."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """`view` looks, `operate` also cancels and explains, `command` also submits."""

    VIEW = "view"
    OPERATE = "operate"
    COMMAND = "command"

    def allows(self, needed: Role) -> bool:
        """Whether a caller of this role may do what needs that one."""
        order = (Role.VIEW, Role.OPERATE, Role.COMMAND)
        return order.index(self) >= order.index(needed)
