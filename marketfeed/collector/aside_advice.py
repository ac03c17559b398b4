"""What `/health` says of journals that were set aside: how they stand, and whether one may be deleted."""

from collections.abc import Iterator, Sequence
from typing import Final

from marketfeed.history.aside_report import AsideReport
from marketfeed.storage.damage import aside_advice

_NAMED: Final = 3


def advice(beside: Sequence[str], reports: Sequence[AsideReport]) -> str:
    """What lies there, how it stands, and what is to be done: whose loss is named before it is deleted."""
    known = {one.path: one for one in reports}
    shown = beside[:_NAMED]
    if all(path in known and _is_whole(known[path]) for path in beside):
        return aside_advice(beside, known)
    if not any(path in known for path in beside):
        return aside_advice(beside)
    more = f"; and {len(beside) - _NAMED} more" if len(beside) > _NAMED else ""
    return "; ".join(_of_one(path, known.get(path)) for path in shown) + more


def _is_whole(one: AsideReport) -> bool:
    return one.state == "drained" and not one.lost


def _of_one(path: str, one: AsideReport | None) -> str:
    if one is None:
        return f"{path}: it waits to be taken over"
    if _is_whole(one):
        return aside_advice([path], {path})
    return f"{path}: {', '.join(_parts(one))}"


def _parts(one: AsideReport) -> Iterator[str]:
    lost = ""
    if one.lost:
        more = f" and {one.lost - _NAMED} more" if one.lost > _NAMED else ""
        lost = f"{one.lost} places of it are lost ({'; '.join(one.lost_places[:_NAMED])}{more})"
    match one.state:
        case "drained":
            yield f"all that can be read was taken over, but {lost}"
            yield (
                "`sqlite3 FILE .recover` may get out more; look at the disk, and delete it (-wal and -shm, "
                "too) only if that may be lost"
            )
            return
        case "unreadable":
            yield "unreadable, it is looked at again hourly"
        case "waiting":
            yield "it waits to be taken over"
        case _:
            yield "it is being taken over"
    if one.trouble:
        yield one.trouble
    if lost:
        yield lost
    yield "what only it held is missing here until then"
