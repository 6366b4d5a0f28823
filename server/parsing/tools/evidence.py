"""How `auto` judges: what a chat template says outweighs the model's type."""

from __future__ import annotations

from collections.abc import Collection


def speaks_for(
    template: str, model_type: str, *, marker: str, types: Collection[str] = (), without: Collection[str] = ()
) -> bool:
    """Does the template write calls with `marker`, and with none of `without`?

    A template that never mentions tools says nothing; then it is enough that the model's type is one of `types`.
    """
    if marker in template:
        return not any(other in template for other in without)
    return model_type in types and "tool" not in template
