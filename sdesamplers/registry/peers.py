"""The names of other libraries, `peers` in registry.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UsageError
from .catalogue import Catalogue


class Peers:
    """Other libraries' names: what runs here under each, or the reason why nothing does."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def called(self, name: str) -> str | None:
        """A peer by its name in upper or lower case."""
        return next((peer for peer in self.catalogue.peers if peer.casefold() == name.casefold()), None)

    def names(self, kind: str) -> list[str]:
        """Every name of a kind, "samplers" or "spacings", peer by peer."""
        return [name for kinds in self.catalogue.peers.values() for name in kinds.get(kind, {})]

    def where(self, peer: str, kind: str, name: str) -> str:
        """Where the registry file says what a peer's name stands for."""
        return self.catalogue.where(f"peers.{peer}.{kind}", name)

    def entries(self, kind: str, name: str) -> Iterator[tuple[str, str, str | dict[str, Any]]]:
        """(peer, its name, entry) of all peers with a name, or of the one in `peer:name`.

        Raises:
            UsageError: it stands for nothing here, with the reason.
        """
        head, _, bare = name.partition(":")
        peer = self.called(head) if bare else None
        asked = dict.fromkeys(self.catalogue.peers, name) if peer is None else {peer: bare}
        refusal = None
        for peer, own in asked.items():
            entry = self.catalogue.peers[peer].get(kind, {}).get(own)
            if isinstance(entry, dict) and "reason" in entry:
                refusal = refusal or f"{own!r} of {peer} has nothing to stand for it here: {entry['reason']}"
            elif entry is not None:
                yield peer, own, entry
        if refusal is not None:
            raise UsageError(refusal)
