"""Names by which torch keeps parameters."""

from __future__ import annotations

from collections.abc import Iterable

from torch.nn import ParameterDict


def check_parameter_names(argument: str, names: Iterable[str]) -> None:
    """Refuses names that are no keys of a :class:`torch.nn.ParameterDict`.

    Raises:
        ValueError: If a name is empty, has a dot or is one of torch's own.
    """
    parameters = ParameterDict()
    for name in names:
        if not name or '.' in name or hasattr(parameters, name):
            raise ValueError(
                f"'{argument}' needs names without '.' that are no attributes of "
                f"torch's ParameterDict, as 'items' is (got {name!r}): choose another "
                f'name'
            )
