"""A dictionary of bounded size that forgets what was not asked for longest: what is kept with a recording."""

from __future__ import annotations

from typing import Any

__all__ = ["Recent"]


class Recent(dict[Any, Any]):
    """At most `most` entries, the most recently read or written ones.

    Example:
        >>> kept = Recent(2)
        >>> kept["a"], kept["b"] = 1, 2
        >>> kept["a"]
        1
        >>> kept["c"] = 3                    # forgets b
        >>> list(kept)
        ['a', 'c']
    """

    def __init__(self, most: int) -> None:
        """An empty one."""
        super().__init__()
        self.most = most

    def __getitem__(self, key: Any) -> Any:
        value = self.pop(key)
        super().__setitem__(key, value)  # the last in order
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        while len(self) > self.most:
            del self[next(iter(self))]

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry, or the default."""
        if key not in self:
            return default
        return self[key]

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The entry; the default, written, where there is none."""
        if key not in self:
            self[key] = default
        return self[key]
