"""Several processes of one command: which of them speaks, and how they part."""

from __future__ import annotations

import os

# The commands whose work is shared.
SHARED = ('pretrain', 'finetune', 'ensemble', 'evaluate')


def rank() -> int:
    """The number of this process, as a launcher gave it; 0 without one."""
    return int(os.environ.get('RANK', '0'))


def launched() -> int:
    """The number of processes that a launcher has started; 1 without one."""
    return int(os.environ.get('WORLD_SIZE', '1')) if 'LOCAL_RANK' in os.environ else 1


def check_shared(command: str | None) -> None:
    """Refuses several processes that would all do the same.

    Raises:
        ValueError: If the work of the command is not shared.
    """
    if launched() > 1 and command is not None and command not in SHARED:
        raise ValueError(
            f"'{command}' works in one process (got {launched()}): start it by 'hellm "
            f"{command}', without a launcher; {', '.join(SHARED)} work in several"
        )


def part() -> None:
    """Leaves the other processes once the work is done."""
    if launched() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
