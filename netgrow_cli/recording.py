"""What a recorder's file is: the names in it, shared by who writes it and who reads it. No torch.

`gradient/fc1.weight/0`: along axis 0 of a parameter, the mean absolute gradient over the other axes and all steps that
were looked at; `taylor/fc1.weight/0`: the mean absolute sum of weight times gradient; `size/fc2.weight` and
`active/fc2.weight`: of each unit that the layer with this parameter reads, the mean absolute value and the share that
was not zero.
"""

from __future__ import annotations

FORMAT = "netgrow.recorder"
GRADIENT, TAYLOR, SIZE, ACTIVE = "gradient", "taylor", "size", "active"


def along(what: str, parameter: str, axis: int) -> str:
    """The key of numbers along an axis of a parameter."""
    return f"{what}/{parameter}/{axis}"


def read_by(what: str, parameter: str) -> str:
    """The key of numbers of what is read with a parameter."""
    return f"{what}/{parameter}"
