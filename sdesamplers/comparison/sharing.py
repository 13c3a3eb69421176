"""A comparison's files on the Hub: uploaded in one commit, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hub.address import Address
from ..hub.cards import README, place_of_card, sealed
from ..hub.upload import Destination
from ..io.files import names_in, read
from .card import TITLE, make_card
from .reading import FOLDER, read_comparison

KINDS = ("json", "csv", "png", "html")
"""Types of the files of a comparison, by their endings."""


def push_folder(
    folder: Path,
    to: Destination,
    path: str = FOLDER,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Upload the files of a comparison and its card in one commit; return the address of the commit.

    Args:
        folder: that `Comparison.save` has written.
        to: the repository.
        path: the folder in the repository.
        private, commit_message, create_pr: as of `Recipe.push_to_hub`.
        about: `task` and `dataset` of the card.

    Raises:
        ModelError: no connection or no permission.
        UsageError: the folder has no comparison.
    """
    place = Address.parse(f"{to.source}/{path}").path
    data = read_comparison(folder)
    found = [name for name in names_in(folder) if name.rpartition(".")[2] in KINDS and not name.startswith(".")]
    found = [name for name in found if (folder / name).is_file()]
    files = {f"{place}/{name}": read(folder / name) for name in found}
    if not create_pr:
        to.create(private)
    card = place_of_card(to, to.names(), TITLE, place)
    front = f"{place}/" if card == README else ""
    listed = {name.rpartition(".")[2]: f"{front}{name}" for name in found}
    text = str(make_card(data, files=listed, **(about or {})))
    files[card] = sealed(text).encode()
    return to.commit(files, commit_message or "Add a comparison of samplers", create_pr=create_pr)
