"""Memory that all links of a process share, so that no peer pays for what others hold. Pure."""


class FairBudget:
    """Bytes that the links hold together.

    Up to `max_bytes` anybody may take more. Up to twice that, who holds no more than an equal part
    among those who hold anything. Beyond, who holds no more than an equal part among as many links
    as there may be: nobody is shut out by others, and the sum stays below three times `max_bytes`.
    """

    def __init__(self, max_bytes: int, links: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._links = links
        self._holders = 0

    def has_room(self, held: int, more: int) -> bool:
        """Whether a link that holds `held` bytes may take `more`."""
        used = self.used + more
        if used <= self.max_bytes:
            return True
        equals = self._holders + (not held) if used <= 2 * self.max_bytes else self._links
        return (held + more) * equals <= self.max_bytes

    def change(self, held: int, by: int) -> None:
        """A link that holds `held` bytes takes `by` more, or gives back -`by`."""
        self._holders += bool(held + by) - bool(held)
        self.used += by
