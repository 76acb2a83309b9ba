"""Were two runs evaluated on the same tests? Otherwise their figures must not stand in one table."""

from __future__ import annotations

from collections.abc import Collection

from lightning_e5.errors import UserError
from lightning_e5.results.run import RunData


def check_same_tests(
    first_name: str, first: RunData, name: str, run: RunData, collections: Collection[str] | None = None
) -> None:
    """UserError where two runs were not evaluated on the same queries, passages and judgements.

    Args:
        first_name: what the message calls ``first``.
        first: the run that the other is compared with.
        name: what the message calls ``run``.
        run: the other.
        collections: only these; all that both have by default, and then they must have one in common.
    """
    for said in other_tests(first_name, first, name, run, collections).values():
        raise UserError(f"{said}: they cannot be compared")


def other_tests(first_name: str, first: RunData, name: str, run: RunData, collections: Collection[str] | None = None) -> dict[str, str]:
    """Collection -> why the figures of two runs on it cannot be compared; arguments as `check_same_tests`.

    Only collections that both have are looked at; without a common one, the key is empty.
    """
    theirs, ours = ({r.collection: r.model for r in x.results()} for x in (first, run))
    if collections is None and theirs and ours and not theirs.keys() & ours.keys():
        return {"": f"{name} was evaluated on {', '.join(ours)}, {first_name} on {', '.join(theirs)}, runs without a common collection"}
    found = {}
    for collection in [c for c in theirs if c in ours and (collections is None or c in collections)]:
        old, new = (x.per_query(m[collection], collection).keys() for x, m in ((first, theirs), (run, ours)))
        if old != new:
            found[collection] = (
                f"{name} was evaluated on {len(new)} queries of {collection!r}, {first_name} on {len(old)}, of which "
                f"{len(old & new)} are common"
            )
            continue
        before, after = first.collection_files(collection), run.collection_files(collection)
        if differing := [f for f in before if f in after and before[f] != after[f]]:
            found[collection] = f"{name} was evaluated on another {collection!r} than {first_name} ({', '.join(differing)} differ)"
    return found
