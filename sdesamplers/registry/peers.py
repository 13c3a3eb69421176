"""The names of other libraries, `peers` in registry.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UsageError
from .catalogue import Catalogue


class Peers:
    """Names in other libraries (peers): the equivalent here of each, or the reason why there is none."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def called(self, name: str) -> str | None:
        """The peer of this name, ignoring case, or None."""
        return next((peer for peer in self.catalogue.peers if peer.casefold() == name.casefold()), None)

    def names(self, kind: str) -> list[str]:
        """Every name of a kind, "samplers" or "spacings", peer by peer."""
        return [name for kinds in self.catalogue.peers.values() for name in kinds.get(kind, {})]

    def where(self, peer: str, kind: str, name: str) -> str:
        """`file:line: peers.peer.kind.name`, the place of the entry in the registry file."""
        return self.catalogue.where(f"peers.{peer}.{kind}", name)

    def entries(self, kind: str, name: str) -> Iterator[tuple[str, str, str | dict[str, Any]]]:
        """Yield (peer, name in the peer, entry) for all peers that have a name, or for the peer in `peer:name`.

        Raises:
            UsageError: there is no equivalent here; the message has the reason.
        """
        head, _, bare = name.partition(":")
        peer = self.called(head) if bare else None
        lookups = dict.fromkeys(self.catalogue.peers, name) if peer is None else {peer: bare}
        refusal = None
        for peer, own in lookups.items():
            entry = self.catalogue.peers[peer].get(kind, {}).get(own)
            if isinstance(entry, dict) and "reason" in entry:
                refusal = refusal or f"{own!r} of {peer} has no equivalent here: {entry['reason']}"
            elif entry is not None:
                yield peer, own, entry
        if refusal is not None:
            raise UsageError(refusal)
